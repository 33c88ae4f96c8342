#include "epistle/error.hpp"

#include "migrate/weight_memory.hpp"

namespace epistle::migrate {

std::unique_ptr<WeightMemory> make_gpu_weights(GroupImpl& /*group*/, const CudaOptions& /*options*/,
                                               const std::vector<std::int64_t>& /*bytes_of_rank*/) {
  throw Error(ErrorCode::kUnsupported,
              "this build has no CUDA device, so weights cannot lie on a GPU; configure with EPISTLE_CUDA=ON");
}

}  // namespace epistle::migrate
