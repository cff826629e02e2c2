#include "trt/memory_attention_plugin.h"

namespace ctx
{

std::vector<Field<MemoryAttentionAttributes>> const& MemoryAttentionAttributes::fields()
{
    using A = MemoryAttentionAttributes;
    static std::vector<Field<A>> const table = withFarAttributes<A>({
        {&A::sinks, {"sinks", 0, kMAX_COUNT, "first tokens, seen by all"}},
        {&A::window, {"window", 1, kMAX_COUNT, "newest tokens that stay tokens"}},
        {&A::memory, {"memory", 1, kMAX_COUNT, "newest evicted blocks that a query sees"}},
        {&A::block, {"block", 1, kMAX_COUNT, "tokens whose keys and values are averaged"}},
        {&A::memorySlots, {"memory_slots", 1, kMAX_COUNT, "slots of the averages"}},
    });
    return table;
}

CtxMemoryAttentionParams MemoryAttentionAttributes::params(CtxAttentionCall const& call) const
{
    CtxMemoryAttentionParams params{};
    params.size = sizeof(params);
    params.sinks = sinks;
    params.window = window;
    params.memory = memory;
    params.block = block;
    params.memorySlots = memorySlots;
    params.call = call;
    return params;
}

MemoryAttentionPlugin::MemoryAttentionPlugin(Attributes const& attributes)
    : FarAttentionPlugin{attributes}
{
    if (mAttributes.memorySlots <= mAttributes.memory)
    {
        throw std::invalid_argument(message("attribute memory_slots is ", mAttributes.memorySlots, " and memory ",
            mAttributes.memory, ": give at least memory and one for each block that a call's rows can evict"));
    }
}

} // namespace ctx
