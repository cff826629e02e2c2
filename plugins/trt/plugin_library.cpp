// Entry points by which TensorRT, TensorRT-RTX and trtexec find the plugins of this library.

#include "trt/log.h"
#include "trt/scaled_rotary_embedding_plugin.h"
#include "trt/sink_window_attention_plugin.h"

#define CTX_EXPORT extern "C" __attribute__((visibility("default")))

CTX_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators)
{
    static ctx::PluginCreator<ctx::ScaledRotaryEmbeddingPlugin> scaledRotaryEmbedding;
    static ctx::PluginCreator<ctx::SinkWindowAttentionPlugin> sinkWindowAttention;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&scaledRotaryEmbedding, &sinkWindowAttention};
    nbCreators = static_cast<int32_t>(std::size(creators));
    return creators;
}

CTX_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    ctx::setLoggerFinder(finder);
}
