// Reads values out of parsed JSON with their types, ranges and presence checked; messages say where.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace ctx::runtime
{

// A value of a JSON file and its place in it, such as "layers[3]". Every call throws Failure{kINVALID_PACKAGE} where
// the value is not what is asked for.
class JsonReader
{
public:
    // `file` is named in messages; `json` must outlive the reader.
    JsonReader(nlohmann::json const& json, std::string file, std::string place = {});

    JsonReader at(char const* key) const;

    // The value of `key`, or none where it is missing or null.
    std::optional<JsonReader> find(char const* key) const;

    std::vector<JsonReader> entries() const;

    // Refuses an object with a key that is not listed: it may change what the listed ones mean.
    void onlyKeys(std::initializer_list<char const*> known) const;

    std::string text() const;
    bool boolean() const;
    int64_t integer(int64_t low, int64_t high) const;
    double number() const; // finite

    std::optional<int64_t> optionalInteger(char const* key, int64_t low, int64_t high) const;
    std::vector<double> numbers() const;

    // Ends the call: "FILE: PLACE `problem`; export the package again".
    [[noreturn]] void fail(std::string const& problem) const;

    nlohmann::json const& json() const noexcept
    {
        return mJson;
    }

private:
    std::string shown() const;

    nlohmann::json const& mJson;
    std::string mFile;
    std::string mPlace;
};

// `text` as JSON, or a failure that calls it `file`.
nlohmann::json parsedJson(std::string const& text, std::string const& file);

} // namespace ctx::runtime
