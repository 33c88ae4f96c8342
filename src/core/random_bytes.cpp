#include "core/random_bytes.hpp"

#include <cerrno>
#include <cstring>
#include <vector>

#include <sys/random.h>
#include <sys/types.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "epistle/error.hpp"

namespace epistle {

void fill_random(void* bytes, std::size_t num_bytes) {
  auto* next = static_cast<std::byte*>(bytes);
  while (num_bytes > 0) {
    const ssize_t got = ::getrandom(next, num_bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw Error(ErrorCode::kSystem, fmt::format("getrandom failed: {}", std::strerror(errno)));
    next += got;
    num_bytes -= static_cast<std::size_t>(got);
  }
}

std::string random_hex(std::size_t num_bytes) {
  std::vector<unsigned char> bytes(num_bytes);
  fill_random(bytes.data(), bytes.size());
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

}  // namespace epistle
