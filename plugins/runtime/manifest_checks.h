// Whether the numbers of a layer's cache can go together.
#pragma once

#include "ctx_runtime/manifest.h"
#include "json_reader.h"

namespace ctx::runtime
{

// Throws Failure{kINVALID_PACKAGE} where a session would write past the cache or over what a query still sees.
void checkCache(CacheInfo const& cache, Manifest const& manifest, JsonReader const& place);

} // namespace ctx::runtime
