#include "trt/optional_inputs.h"

#include "kernels/common/validation.h"

#include <algorithm>
#include <stdexcept>

namespace ctx
{

int32_t placeOptionalInputs(std::string const& names, int32_t first, std::initializer_list<OptionalInput> known)
{
    auto const* next = known.begin();
    for (size_t begin = 0; begin < names.size();)
    {
        size_t const end = std::min(names.find(',', begin), names.size());
        std::string const name = names.substr(begin, end - begin);
        next = std::find_if(next, known.end(), [&name](OptionalInput const& input) { return name == input.name; });
        if (next == known.end())
        {
            std::string all;
            for (OptionalInput const& input : known)
            {
                all += (all.empty() ? "" : ",") + std::string{input.name};
            }
            throw std::invalid_argument(message("attribute optional_inputs is \"", names, "\", where \"", name,
                "\" is unknown, repeated or out of order: give some of ", all, " in this order"));
        }
        *next->index = first++;
        ++next;
        begin = end + 1;
    }
    return first;
}

} // namespace ctx
