// The CUDA device: dispatchers whose rows live in GPU memory and whose calls are ordered by a CUDA stream.
//
// The calls are those of Dispatcher (epistle/dispatcher.hpp), with these differences:
//   - every pointer (routing, payload, output, handle description) is device memory of the dispatcher's device;
//   - calls put work on the stream that is given to them and return; results are there when the stream gets to them.
//   prepare
//     waits on the host under exact sizing (once, for the counts), never under capacity sizing: then every call,
//     dispatch_backward with gradients of the weights included, can be captured into a CUDA graph and replayed with
//     other routing and rows in the same buffers. A captured handle must outlive the graph. Order between calls on
//     different streams is the caller's business; a stream must live until Dispatcher::wait() after the last call on
//     it, or until a call on another stream;
//   - where max_handles prepares are still running on the GPU, prepare waits for the oldest of them;
//   - under capacity sizing Handle::try_stats() is null until the stream got there, and Handle::wait_stats() waits for
//     it; after a graph has run prepare again, both give the new counts;
//   - what the device finds (bad ids, rows beyond the capacity under OverflowPolicy::kError, ranks that do not agree on
//     a call, a rank that is late or gone) is thrown by wait(), by Handle::try_stats() and wait_stats(), or by a
//     later call, whichever comes first; a later call that throws it has not been made. The rows of the call it
//     happened in must not be used. Nothing is written out of place in any case.
//
// Ranks do not agree on a call when one of them makes another call, uses another handle, or gives gradients of the
// weights while others do not (kShapeMismatch on every rank), or when one refuses its input (it throws at once what is
// wrong, the others kPeerRejected). Such a call ends on all ranks without having moved anything, and the next one
// works; a rank's own dispatch may have overwritten the rows that its last one has received (and see
// CudaMover::kCopyEngines). Where several calls in a row fail before the host looks, the first of them is thrown.
// A dispatch with ids is a call of its own here: it does not go together with prepare and dispatch on another rank. A
// call that fails in its send half may be thrown before its receive half is made; then that must be left out.
//
// That is so of `direct`. `alltoall` moves rows with NCCL, which the host has to tell how many there are: the first
// call with a handle waits for its counts under every sizing, every call agrees with the other ranks on the host, and
// none can be captured (kUnsupported). Every rank needs a GPU of its own. `hybrid` over several domains is the same but
// for that: its rows go by links of the host, ranks may share a GPU, and a call returns when all ranks have passed its
// rows on.
//
// The header needs no CUDA header; in a build without CUDA creating a dispatcher there throws kUnsupported.
#pragma once

#include <string>

#include "epistle/export.hpp"

namespace epistle {

/// What a build and this machine can do.
struct CudaSupport {
  bool compiled = false;    ///< the library was built with CUDA
  int num_devices = 0;      ///< GPUs that the driver shows
  std::string reason = {};  ///< why num_devices is 0; empty otherwise
};
[[nodiscard]] EPISTLE_API CudaSupport cuda_support();

}  // namespace epistle
