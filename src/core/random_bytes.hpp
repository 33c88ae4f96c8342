// What nobody can guess: names, secrets and keys.
#pragma once

#include <cstddef>
#include <string>

namespace epistle {

/// From the kernel. Throws kSystem.
void fill_random(void* bytes, std::size_t num_bytes);

/// So many random bytes, in hexadecimal digits.
[[nodiscard]] std::string random_hex(std::size_t num_bytes);

}  // namespace epistle
