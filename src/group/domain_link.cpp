// Links that know nothing of GPUs: all but those that say so.
#include "group/domain_link.hpp"

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

[[noreturn]] void throw_no_gpus(const std::string& link) {
  throw Error(ErrorCode::kUnsupported,
              fmt::format("a link by {} takes no memory of GPUs; stage it in host memory", link));
}

}  // namespace

std::string DomainLink::lack_of_gpu_memory(const GpuSpan& /*trial*/) {
  return fmt::format("a link by {} takes no memory of GPUs", describe());
}

void DomainLink::expose_gpu(std::int64_t /*offset*/, const GpuSpan& /*span*/) { throw_no_gpus(describe()); }
void DomainLink::register_gpu(const GpuSpan& /*span*/) { throw_no_gpus(describe()); }
void DomainLink::withdraw_gpu(const std::byte* /*data*/) { throw_no_gpus(describe()); }

}  // namespace epistle
