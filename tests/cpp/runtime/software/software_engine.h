// A test engine: the model in plain float32 C++, computing what the package's graph computes, for packages of a Llama
// checkpoint with full or bounded caches. It reads the checkpoint's weights, not the package's.
#pragma once

#include "ctx_runtime/engine.h"

#include <string>

namespace ctx::software
{

// Loads engines for packages that were exported in float32 from `checkpoint`.
runtime::EngineFactory softwareEngine(std::string const& checkpoint);

} // namespace ctx::software
