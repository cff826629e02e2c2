// Entry points by which TensorRT finds the plugins of this library.
//
// IPluginRegistry::loadLibrary opens the library, passes setLoggerFinder its logger and registers what getCreators
// lists; it refuses a library whose plugins are registered already, so nothing here registers itself when it is opened,
// as REGISTER_TENSORRT_PLUGIN would. Who loads it how:
// - TensorRT 10.3 or later, TensorRT-RTX: get_plugin_registry().load_library(path), once, before an engine is parsed,
//   built or deserialised.
// - trtexec: --dynamicPlugins=path, or packed into the engine with --setPluginsToSerialize=path. --staticPlugins only
//   opens a library and expects it to register itself, so it finds no plugin here.
// - onnxruntime's TensorRT provider: trt_extra_plugin_lib_paths only opens a library, too. Load it into TensorRT's
//   registry before the session is made: import tensorrt; tensorrt.get_plugin_registry().load_library(path).
// initLibNvInferPlugins is the entry of TensorRT's own plugins; no loader asks another library for it.

#include "trt/dual_chunk_attention_plugin.h"
#include "trt/landmark_attention_plugin.h"
#include "trt/log.h"
#include "trt/memory_attention_plugin.h"
#include "trt/rotary_frequencies_plugin.h"
#include "trt/scaled_rotary_embedding_plugin.h"
#include "trt/self_extend_attention_plugin.h"
#include "trt/sink_window_attention_plugin.h"

#define CTX_EXPORT extern "C" __attribute__((visibility("default")))

CTX_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators)
{
    static ctx::PluginCreator<ctx::DualChunkAttentionPlugin> dualChunkAttention;
    static ctx::PluginCreator<ctx::LandmarkAttentionPlugin> landmarkAttention;
    static ctx::PluginCreator<ctx::MemoryAttentionPlugin> memoryAttention;
    static ctx::PluginCreator<ctx::RotaryFrequenciesPlugin> rotaryFrequencies;
    static ctx::PluginCreator<ctx::ScaledRotaryEmbeddingPlugin> scaledRotaryEmbedding;
    static ctx::PluginCreator<ctx::SelfExtendAttentionPlugin> selfExtendAttention;
    static ctx::PluginCreator<ctx::SinkWindowAttentionPlugin> sinkWindowAttention;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&dualChunkAttention, &landmarkAttention,
        &memoryAttention, &rotaryFrequencies, &scaledRotaryEmbedding, &selfExtendAttention, &sinkWindowAttention};
    nbCreators = static_cast<int32_t>(std::size(creators));
    return creators;
}

// An ILoggerFinder: see trt/abi/logger.h for why its type is left open.
CTX_EXPORT void setLoggerFinder(void* finder)
{
    ctx::setLoggerFinder(finder);
}
