// TensorRT shell of MemoryAttention.
#pragma once

#include "trt/far_attention_shell.h"

namespace ctx
{

struct MemoryAttentionAttributes : FarAttentionAttributes
{
    int32_t sinks;
    int32_t window;
    int32_t memory;
    int32_t block;
    int32_t memorySlots;

    static std::vector<Field<MemoryAttentionAttributes>> const& fields();

    CtxMemoryAttentionParams params(CtxAttentionCall const& call) const;
};

class MemoryAttentionPlugin final : public FarAttentionPlugin<MemoryAttentionPlugin, MemoryAttentionAttributes>
{
public:
    static constexpr char const* kNAME = "MemoryAttention";
    static constexpr auto kLAUNCH = ctxMemoryAttention;
    static constexpr auto kWORKSPACE = ctxMemoryAttentionWorkspace;

    explicit MemoryAttentionPlugin(Attributes const& attributes);
};

} // namespace ctx
