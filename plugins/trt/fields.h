// A plugin's attributes as one table: it lists them for the parser, reads them from a node or an engine, checks their
// ranges and writes them into an engine.
#pragma once

#include "kernels/common/validation.h"
#include "trt/tensorrt_abi.h"

#include <stdexcept>
#include <variant>
#include <vector>

namespace ctx
{

// Name of an attribute, the range it must lie in (numbers only) and what it means.
struct FieldRule
{
    char const* name;
    double minimum;
    double maximum;
    char const* meaning;
};

// One attribute and where it is kept.
template <typename Attributes>
struct Field
{
    std::variant<int32_t Attributes::*, float Attributes::*, std::string Attributes::*> member;
    FieldRule rule;
};

// The field as the parser or an engine sees it; without a value only its name and type.
nvinfer1::PluginField fieldOf(FieldRule const& rule, int32_t const* value);
nvinfer1::PluginField fieldOf(FieldRule const& rule, float const* value);
nvinfer1::PluginField fieldOf(FieldRule const& rule, std::string const* value);

// Reads the attribute out of a node's or an engine's fields. Throws std::invalid_argument naming the attribute if it is
// missing, of another type or out of range. A text may be absent: TensorRT drops empty ones.
void readField(nvinfer1::PluginFieldCollection const& fields, FieldRule const& rule, int32_t& value);
void readField(nvinfer1::PluginFieldCollection const& fields, FieldRule const& rule, float& value);
void readField(nvinfer1::PluginFieldCollection const& fields, FieldRule const& rule, std::string& value);

// Points into `attributes`, if there are any.
template <typename Attributes>
std::vector<nvinfer1::PluginField> listFields(Attributes const* attributes)
{
    std::vector<nvinfer1::PluginField> list;
    for (Field<Attributes> const& field : Attributes::fields())
    {
        auto const append = [&](auto member)
        { list.push_back(fieldOf(field.rule, attributes == nullptr ? nullptr : &(attributes->*member))); };
        std::visit(append, field.member);
    }
    return list;
}

template <typename Attributes>
Attributes readFields(nvinfer1::PluginFieldCollection const& fields)
{
    Attributes attributes{};
    for (Field<Attributes> const& field : Attributes::fields())
    {
        std::visit([&](auto member) { readField(fields, field.rule, attributes.*member); }, field.member);
    }
    return attributes;
}

} // namespace ctx
