#include "dispatch/host/engine/wire_rows.hpp"

#include <cstring>
#include <vector>

#include "dispatch/host/engine/quantise_kernels.hpp"

namespace epistle::host {
namespace {

/// Room for one row and its scales. One per thread, so that nothing is allocated in steady state and workers do not
/// share.
std::byte* scratch_of_thread(std::int64_t num_bytes) {
  thread_local std::vector<std::byte> scratch;
  if (scratch.size() < static_cast<std::size_t>(num_bytes)) scratch.resize(static_cast<std::size_t>(num_bytes));
  return scratch.data();
}

}  // namespace

WireRow WireRows::at(std::int64_t token) const {
  if (job_.quantises) {
    std::byte* const row = scratch_of_thread(job_.row_bytes + job_.scale_bytes);
    std::byte* const scales = row + job_.row_bytes;
    quantise(token, row, scales);
    return {row, scales};
  }
  if (job_.scale_bytes == 0) return {given(token), nullptr};
  const ScaleSource& scales = job_.scales;
  if (scales.column_stride == scales.element_bytes) return {given(token), scales.data + token * scales.row_stride};
  std::byte* const gathered = scratch_of_thread(job_.scale_bytes);
  gather_scales(token, gathered);
  return {given(token), gathered};
}

void WireRows::write(std::int64_t token, std::byte* row, std::byte* scales, StoreMode mode) const {
  if (job_.quantises) return quantise(token, row, scales);
  copy_row(given(token), row, static_cast<std::size_t>(job_.row_bytes), mode);
  if (job_.scale_bytes > 0) gather_scales(token, scales);
}

void WireRows::quantise(std::int64_t token, std::byte* row, std::byte* scales) const noexcept {
  quantise_row({.source = given(token),
                .hidden = config_.hidden,
                .format = config_.quantised.scales,
                .powers_of_two = config_.quantised.powers_of_two,
                .row = row,
                .scales = scales});
}

void WireRows::gather_scales(std::int64_t token, std::byte* target) const noexcept {
  const ScaleSource& scales = job_.scales;
  const std::byte* source = scales.data + token * scales.row_stride;
  if (scales.column_stride == scales.element_bytes) {
    std::memcpy(target, source, static_cast<std::size_t>(job_.scale_bytes));
    return;
  }
  for (std::int64_t done = 0; done < job_.scale_bytes; done += scales.element_bytes, source += scales.column_stride) {
    std::memcpy(target + done, source, static_cast<std::size_t>(scales.element_bytes));
  }
}

}  // namespace epistle::host
