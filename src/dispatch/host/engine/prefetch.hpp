// Lines that will be read soon and lie in another processor's cache: asked for all at once, they come in the time of
// one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "group/barrier.hpp"

namespace epistle::host {

inline void prefetch_to_write(std::byte* line) noexcept {
#if defined(__x86_64__)
  // Every processor of 64 bits takes it; the compiler makes a plain prefetch of it unless it is told of the processor.
  asm volatile("prefetchw %0" : : "m"(*line));
#else
  __builtin_prefetch(line, 1);
#endif
}

/// Asks for the lines of `bytes`, from its start: as many as a processor can have under way.
inline void prefetch_lines(std::span<const std::byte> bytes) noexcept {
  constexpr std::size_t kMostLines = 16;
  const std::size_t num_bytes = std::min(bytes.size(), kMostLines * kCacheLineBytes);
  for (std::size_t offset = 0; offset < num_bytes; offset += kCacheLineBytes) __builtin_prefetch(bytes.data() + offset);
  if (num_bytes > 0) __builtin_prefetch(bytes.data() + num_bytes - 1);  // where the first does not start a line
}

/// The same for lines that will be written: other processors lose them meanwhile.
inline void prefetch_lines_to_write(std::span<std::byte> bytes) noexcept {
  constexpr std::size_t kMostLines = 16;
  const std::size_t num_bytes = std::min(bytes.size(), kMostLines * kCacheLineBytes);
  for (std::size_t offset = 0; offset < num_bytes; offset += kCacheLineBytes) prefetch_to_write(bytes.data() + offset);
}

}  // namespace epistle::host
