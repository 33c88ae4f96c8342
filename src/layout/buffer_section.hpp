// The parts of a rank's memory that all ranks address. Host and device code.
#pragma once

#include <cstdint>

namespace epistle {

/// The buffers of one rank.
enum class BufferSection : std::int32_t {
  kControl,      ///< counts that prepare exchanges; on a device signals too
  kRecords,      ///< descriptions of received rows
  kReceiveRows,  ///< dispatch output
  kReceiveScales,
  kCombineRows,  ///< expert outputs, read by the ranks the tokens came from
  kGradWeights,  ///< gradients of the weights, likewise
  kSendRows,     ///< rows on their way: packed, or the whole input
  kSendScales,
  kStageRows,  ///< rows as they came, before they are sorted or summed
  kStageScales,
  kDispatchLines,  ///< rows, with what describes them, that carry their own arrival flags
  kCombineLines,
};
inline constexpr std::int32_t kNumBufferSections = 12;

}  // namespace epistle
