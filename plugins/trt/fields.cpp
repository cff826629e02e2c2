#include "trt/fields.h"

#include <cmath>
#include <cstring>

namespace ctx
{
namespace
{

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

PluginField const* findField(PluginFieldCollection const& fields, char const* name) noexcept
{
    for (int32_t i = 0; i < fields.nbFields; ++i)
    {
        if (fields.fields[i].name != nullptr && std::strcmp(fields.fields[i].name, name) == 0)
        {
            return &fields.fields[i];
        }
    }
    return nullptr;
}

// A node may hold integers and reals in either width.
double numberOf(PluginField const& field)
{
    if (field.data != nullptr && field.length == 1)
    {
        switch (field.type)
        {
        case PluginFieldType::kINT32: return *static_cast<int32_t const*>(field.data);
        case PluginFieldType::kINT64: return static_cast<double>(*static_cast<int64_t const*>(field.data));
        case PluginFieldType::kFLOAT32: return *static_cast<float const*>(field.data);
        case PluginFieldType::kFLOAT64: return *static_cast<double const*>(field.data);
        default: break;
        }
    }
    throw std::invalid_argument(message("attribute ", field.name, " has ", field.length, " entries of field type ",
        static_cast<int32_t>(field.type), ": give a single integer or real number"));
}

double numberInRange(PluginFieldCollection const& fields, FieldRule const& rule, char const* kind)
{
    PluginField const* const field = findField(fields, rule.name);
    if (field == nullptr)
    {
        throw std::invalid_argument(message("attribute ", rule.name, " is missing: write it on the node (",
            rule.meaning, "); the defaults of a function do not reach a plugin"));
    }
    double const number = numberOf(*field);
    if (!(number >= rule.minimum && number <= rule.maximum))
    {
        throw std::invalid_argument(message("attribute ", rule.name, " is ", number, ": give ", kind, " from ",
            rule.minimum, " to ", rule.maximum, " (", rule.meaning, ")"));
    }
    return number;
}

} // namespace

PluginField fieldOf(FieldRule const& rule, int32_t const* value)
{
    return PluginField{rule.name, value, PluginFieldType::kINT32, value == nullptr ? 0 : 1};
}

PluginField fieldOf(FieldRule const& rule, float const* value)
{
    return PluginField{rule.name, value, PluginFieldType::kFLOAT32, value == nullptr ? 0 : 1};
}

PluginField fieldOf(FieldRule const& rule, std::string const* value)
{
    if (value == nullptr)
    {
        return PluginField{rule.name, nullptr, PluginFieldType::kCHAR, 0};
    }
    // With its terminating zero an empty text still has an entry.
    return PluginField{rule.name, value->c_str(), PluginFieldType::kCHAR, static_cast<int32_t>(value->size()) + 1};
}

void readField(PluginFieldCollection const& fields, FieldRule const& rule, int32_t& value)
{
    double const number = numberInRange(fields, rule, "a whole number");
    if (number != std::floor(number))
    {
        throw std::invalid_argument(
            message("attribute ", rule.name, " is ", number, ": give a whole number (", rule.meaning, ")"));
    }
    value = static_cast<int32_t>(number);
}

void readField(PluginFieldCollection const& fields, FieldRule const& rule, float& value)
{
    value = static_cast<float>(numberInRange(fields, rule, "a number"));
}

void readField(PluginFieldCollection const& fields, FieldRule const& rule, std::string& value)
{
    PluginField const* const field = findField(fields, rule.name);
    value.clear();
    if (field == nullptr || (field->length == 0 && field->type == PluginFieldType::kCHAR))
    {
        return;
    }
    if (field->type != PluginFieldType::kCHAR || field->data == nullptr || field->length < 0)
    {
        throw std::invalid_argument(message("attribute ", rule.name, " has ", field->length, " entries of field type ",
            static_cast<int32_t>(field->type), ": give a string (", rule.meaning, ")"));
    }
    auto const* const text = static_cast<char const*>(field->data);
    value.assign(text, strnlen(text, static_cast<size_t>(field->length)));
}

} // namespace ctx
