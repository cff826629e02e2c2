// The tensor-core kernels of bfloat16, in a file of their own so that they compile beside the others.

#include "kernels/landmark_attention/landmark_attention_matrix.cuh"

namespace ctx
{

template LaunchResult launchMatrixBlocks<BFloat16>(LandmarkCall const& call, cudaStream_t stream);

} // namespace ctx
