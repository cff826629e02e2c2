// Reading the attribute `optional_inputs`: which of a node's optional inputs are there.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

namespace ctx
{

// An optional input, and where its index goes.
struct OptionalInput
{
    char const* name;
    int32_t* index;
};

// Gives the inputs named in `names`, comma-separated, the indices from `first` on; returns the index after the last.
// Throws std::invalid_argument if a name is unknown, repeated or not in the order of `known`.
int32_t placeOptionalInputs(std::string const& names, int32_t first, std::initializer_list<OptionalInput> known);

} // namespace ctx
