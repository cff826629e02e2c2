#include "json_reader.h"

#include "boundary.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ctx::runtime
{

namespace
{

constexpr size_t kSHOWN = 60; // characters of a wrong value in a message

} // namespace

JsonReader::JsonReader(nlohmann::json const& json, std::string file, std::string place)
    : mJson(json)
    , mFile(std::move(file))
    , mPlace(std::move(place))
{
}

JsonReader JsonReader::at(char const* key) const
{
    if (!mJson.is_object())
    {
        fail("is " + shown() + " where an object belongs");
    }
    auto const found = mJson.find(key);
    std::string const place = mPlace.empty() ? key : mPlace + "." + key;
    if (found == mJson.end())
    {
        JsonReader{mJson, mFile, place}.fail("is missing");
    }
    return {*found, mFile, place};
}

std::optional<JsonReader> JsonReader::find(char const* key) const
{
    if (mJson.is_object() && (!mJson.contains(key) || mJson.at(key).is_null()))
    {
        return std::nullopt;
    }
    return at(key);
}

std::vector<JsonReader> JsonReader::entries() const
{
    if (!mJson.is_array())
    {
        fail("is " + shown() + " where a list belongs");
    }
    std::vector<JsonReader> all;
    for (size_t i = 0; i < mJson.size(); ++i)
    {
        all.emplace_back(mJson[i], mFile, mPlace + "[" + std::to_string(i) + "]");
    }
    return all;
}

void JsonReader::onlyKeys(std::initializer_list<char const*> known) const
{
    for (auto const& [key, value] : mJson.items())
    {
        auto const isKey = [&key = key](char const* name) { return key == name; };
        if (std::none_of(known.begin(), known.end(), isKey))
        {
            fail("has the key " + key.substr(0, kSHOWN) + ", which this runtime does not know");
        }
    }
}

std::string JsonReader::text() const
{
    if (!mJson.is_string())
    {
        fail("is " + shown() + " where text belongs");
    }
    auto const& text = mJson.get_ref<std::string const&>();
    // Names go on to interfaces that end them at the first zero.
    if (text.find('\0') != std::string::npos)
    {
        fail("has a zero character");
    }
    return text;
}

bool JsonReader::boolean() const
{
    if (!mJson.is_boolean())
    {
        fail("is " + shown() + " where true or false belongs");
    }
    return mJson.get<bool>();
}

int64_t JsonReader::integer(int64_t low, int64_t high) const
{
    // Unsigned numbers are those that were written without a sign.
    bool const isHuge = mJson.is_number_unsigned() && mJson.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
    if (!mJson.is_number_integer() || isHuge || mJson.get<int64_t>() < low || mJson.get<int64_t>() > high)
    {
        fail("is " + shown() + " where a whole number from " + std::to_string(low) + " to " + std::to_string(high)
            + " belongs");
    }
    return mJson.get<int64_t>();
}

double JsonReader::number() const
{
    if (!mJson.is_number() || !std::isfinite(mJson.get<double>()))
    {
        fail("is " + shown() + " where a number belongs");
    }
    return mJson.get<double>();
}

std::optional<int64_t> JsonReader::optionalInteger(char const* key, int64_t low, int64_t high) const
{
    std::optional<JsonReader> const found = find(key);
    return found ? std::optional<int64_t>{found->integer(low, high)} : std::nullopt;
}

std::vector<double> JsonReader::numbers() const
{
    std::vector<double> all;
    for (JsonReader const& entry : entries())
    {
        all.push_back(entry.number());
    }
    return all;
}

void JsonReader::fail(std::string const& problem) const
{
    std::string const subject = mPlace.empty() ? "it" : mPlace;
    throw Failure{StatusCode::kINVALID_PACKAGE,
        mFile + " is not a valid manifest: " + subject + " " + problem + "; export the package again"};
}

std::string JsonReader::shown() const
{
    if (mJson.is_structured())
    {
        return mJson.is_object() ? "an object" : "a list";
    }
    std::string text = mJson.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    if (text.size() > kSHOWN)
    {
        text.replace(kSHOWN, std::string::npos, "...");
    }
    return text;
}

nlohmann::json parsedJson(std::string const& text, std::string const& file)
{
    try
    {
        return nlohmann::json::parse(text);
    }
    catch (nlohmann::json::exception const& error)
    {
        throw Failure{
            StatusCode::kINVALID_PACKAGE, file + " cannot be read: " + error.what() + "; export the package again"};
    }
}

} // namespace ctx::runtime
