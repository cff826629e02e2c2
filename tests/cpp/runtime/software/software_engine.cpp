#include "software_engine.h"

#include "attention.h"
#include "boundary.h"

#include <algorithm>

namespace ctx::software
{

namespace
{

using runtime::CacheBinding;
using runtime::Failure;
using runtime::Package;
using runtime::Status;
using runtime::StatusCode;
using runtime::Step;

using Rows = std::vector<float>;

// x [rows, in] times the transpose of a weight [out, in].
Rows product(Rows const& x, float const* weight, int64_t in, int64_t out)
{
    auto const rows = static_cast<int64_t>(x.size()) / in;
    Rows y(rows * out);
    for (int64_t o = 0; o < out; ++o)
    {
        for (int64_t row = 0; row < rows; ++row)
        {
            y[row * out + o] = dot(x.data() + row * in, weight + o * in, in);
        }
    }
    return y;
}

Rows normalised(Rows const& x, float const* weight, Config const& config)
{
    Rows y(x.size());
    for (size_t begin = 0; begin < x.size(); begin += config.hidden)
    {
        float const* const row = x.data() + begin;
        float const mean = dot(row, row, config.hidden) / static_cast<float>(config.hidden);
        float const scale = 1 / std::sqrt(mean + config.epsilon);
        for (int64_t i = 0; i < config.hidden; ++i)
        {
            y[begin + i] = row[i] * scale * weight[i];
        }
    }
    return y;
}

void add(Rows& x, Rows const& y)
{
    std::transform(x.begin(), x.end(), y.begin(), x.begin(), [](float a, float b) { return a + b; });
}

class SoftwareEngine final : public runtime::Engine
{
public:
    SoftwareEngine(Package const& package, Weights weights)
        : mManifest(package.manifest)
        , mWeights(std::move(weights))
    {
    }

    runtime::Memory& memory() noexcept override
    {
        return mMemory;
    }

    Status bindCaches(std::vector<CacheBinding> const& layers) noexcept override
    {
        return runtime::guarded<Status>(
            [&]
            {
                mCaches = layers;
                return Status{};
            });
    }

    Status step(Step const& step, float* logits) noexcept override
    {
        return runtime::guarded<Status>(
            [&]
            {
                for (int64_t sequence = 0; sequence < step.batch; ++sequence)
                {
                    runSequence(step, sequence, logits + sequence * step.logitRowCount * mWeights.config.vocab);
                }
                return Status{};
            });
    }

private:
    void runSequence(Step const& step, int64_t sequence, float* logits);
    Rows attended(Rows const& x, int64_t layer, Step const& step, int64_t sequence, Rotation& rotation);
    Rows gated(Rows const& x, std::string const& prefix) const;

    runtime::Manifest mManifest;
    Weights mWeights;
    runtime::HostMemory mMemory;
    std::vector<CacheBinding> mCaches;
};

void SoftwareEngine::runSequence(Step const& step, int64_t sequence, float* logits)
{
    Config const& config = mWeights.config;
    float const* const embedding = mWeights.at("model.embed_tokens.weight");
    Rows x;
    for (int64_t row = 0; row < step.newTokens[sequence]; ++row)
    {
        float const* const token = embedding + step.inputIds[sequence * step.rows + row] * config.hidden;
        x.insert(x.end(), token, token + config.hidden);
    }
    Rotation rotation{mManifest.scaling, step.ropeLength == nullptr ? 0 : step.ropeLength[sequence]};
    for (int64_t layer = 0; layer < config.layers; ++layer)
    {
        std::string const prefix = "model.layers." + std::to_string(layer) + ".";
        add(x,
            attended(normalised(x, mWeights.at(prefix + "input_layernorm.weight"), config), layer, step, sequence,
                rotation));
        add(x, gated(normalised(x, mWeights.at(prefix + "post_attention_layernorm.weight"), config), prefix + "mlp."));
    }
    x = normalised(x, mWeights.at("model.norm.weight"), config);
    std::fill_n(logits, step.logitRowCount * config.vocab, 0.0F);
    for (int64_t i = 0; i < step.logitRowCount; ++i)
    {
        int64_t const row = step.logitRows[sequence * step.logitRowCount + i];
        if (row < step.newTokens[sequence])
        {
            Rows const chosen(x.begin() + row * config.hidden, x.begin() + (row + 1) * config.hidden);
            Rows const values = product(chosen, embedding, config.hidden, config.vocab);
            std::copy(values.begin(), values.end(), logits + i * config.vocab);
        }
    }
}

Rows SoftwareEngine::attended(Rows const& x, int64_t layer, Step const& step, int64_t sequence, Rotation& rotation)
{
    Config const& config = mWeights.config;
    std::string const prefix = "model.layers." + std::to_string(layer) + ".self_attn.";
    int64_t const width = config.heads * config.headDim;
    int64_t const kvWidth = config.kvHeads * config.headDim;
    Rows const q = product(x, mWeights.at(prefix + "q_proj.weight"), config.hidden, width);
    Rows const k = product(x, mWeights.at(prefix + "k_proj.weight"), config.hidden, kvWidth);
    Rows const v = product(x, mWeights.at(prefix + "v_proj.weight"), config.hidden, kvWidth);
    CacheBinding const& binding = mCaches[layer];
    int64_t const offset = sequence * kvWidth * binding.slots;
    CacheView const view{reinterpret_cast<float*>(binding.key) + offset,
        reinterpret_cast<float*>(binding.value) + offset, binding.slots};
    Rows y;
    attend(mManifest.layers[layer], config, view, rotation, step.seen[sequence], q, k, v, y);
    return product(y, mWeights.at(prefix + "o_proj.weight"), width, config.hidden);
}

Rows SoftwareEngine::gated(Rows const& x, std::string const& prefix) const
{
    Config const& config = mWeights.config;
    Rows gate = product(x, mWeights.at(prefix + "gate_proj.weight"), config.hidden, config.inner);
    Rows const up = product(x, mWeights.at(prefix + "up_proj.weight"), config.hidden, config.inner);
    std::transform(gate.begin(), gate.end(), up.begin(), gate.begin(),
        [](float g, float u) { return g / (1 + std::exp(-g)) * u; });
    return product(gate, mWeights.at(prefix + "down_proj.weight"), config.inner, config.hidden);
}

void checkRunnable(Package const& package, Config const& config)
{
    bool fits = package.manifest.model.vocab == config.vocab
        && static_cast<int64_t>(package.contract.layers.size()) == config.layers
        && !package.manifest.scaling.layersDiffer;
    for (runtime::LayerCache const& layer : package.contract.layers)
    {
        fits = fits && layer.type == runtime::DataType::kFLOAT32 && layer.cache.rule == runtime::CacheRule::kPLAIN
            && layer.kvHeads == config.kvHeads && layer.headDim == config.headDim;
    }
    if (!fits)
    {
        throw Failure{StatusCode::kINVALID_ARGUMENT,
            package.directory + " is no float32 package with plain caches of the software engine's checkpoint"};
    }
}

} // namespace

runtime::EngineFactory softwareEngine(std::string const& checkpoint)
{
    return [checkpoint](Package const& package, runtime::EngineOptions const&)
    {
        return runtime::guarded<runtime::Result<std::unique_ptr<runtime::Engine>>>(
            [&]
            {
                Weights weights = runtime::valueOf(loadWeights(checkpoint));
                checkRunnable(package, weights.config);
                return std::unique_ptr<runtime::Engine>{new SoftwareEngine{package, std::move(weights)}};
            });
    };
}

} // namespace ctx::software
