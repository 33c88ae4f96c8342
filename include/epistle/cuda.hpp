// The CUDA device: dispatchers whose rows live in GPU memory and whose calls are ordered by a CUDA stream.
//
// The calls are those of Dispatcher (epistle/dispatcher.hpp), with these differences:
//   - every pointer (routing, payload, output, handle description) is device memory of the dispatcher's device;
//   - calls put work on the dispatcher's stream and return; results are there when the stream gets to them. prepare
//     waits on the host under exact sizing (once, for the counts), never under capacity sizing: then every call,
//     dispatch_backward with gradients of the weights included, can be captured into a CUDA graph and replayed with
//     other routing and rows in the same buffers. A captured handle must outlive the graph;
//   - under capacity sizing Handle::stats() waits for the stream, and Handle::output() does not: num_dropped of the
//     output is -1 until stats() has been called or synchronize() has returned. After a graph has run prepare again,
//     stats() brings both up to date;
//   - what the device finds (bad ids, rows beyond the capacity under OverflowPolicy::kError, ranks that do not agree on
//     a call, a rank that is late or gone) is thrown by synchronize(), by Handle::stats(), or by a later call,
//     whichever comes first; a later call that throws it has not been made. The rows of the call it happened in must
//     not be used. Nothing is written out of place in any case.
//
// Ranks do not agree on a call when one of them makes another call, uses another handle, or gives gradients of the
// weights while others do not (kShapeMismatch on every rank), or when one refuses its input (it throws at once what is
// wrong, the others kPeerRejected). Such a call ends on all ranks without having moved anything, and the next one
// works; a rank's own dispatch may have overwritten the rows that its last one has received (and see
// CudaMover::kCopyEngines). Where several calls in a row fail before the host looks, the first of them is thrown.
// prepare_and_dispatch is a call of its own here: it does not go together with prepare and dispatch on another rank. A
// call that fails in its send half may be thrown before its receive half is made; then that must be left out.
//
// That is so of `direct`. `alltoall` moves rows with NCCL, which the host has to tell how many there are: the first
// call with a handle waits for its counts under every sizing, every call agrees with the other ranks on the host, and
// none can be captured (kUnsupported). Every rank needs a GPU of its own.
//
// The header needs no CUDA header; in a build without CUDA the functions exist and throw kUnsupported.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/dispatcher.hpp"

struct CUstream_st;

namespace epistle {

/// A cudaStream_t.
using CudaStream = CUstream_st*;

/// How rows cross from GPU to GPU.
enum class CudaMover : std::int32_t {
  kAuto,         ///< what the tuning table says for the call
  kVector,       ///< 16-byte loads and stores: any GPU from sm_80 on
  kBulk,         ///< bulk copies through shared memory: sm_90 and later
  kCopyEngines,  ///< rows are packed on a few SMs and moved by the copy engines; exact sizing and token_major only.
                 ///< These rows cannot be held back: ranks that do not agree on a dispatch may find their last output
                 ///< overwritten
};

struct CudaOptions {
  /// CUDA ordinal of this rank's GPU. -1: ranks are spread evenly over the visible GPUs, in blocks; several ranks on
  /// one GPU ("virtual ranks") must be threads of one process.
  int device = -1;
  /// Streaming multiprocessors that one call may occupy, one thread block on each. 0: what the tuning table says. Never
  /// more than the GPU's share of one rank, so that the kernels of all ranks on it are resident together.
  int num_sms = 0;
  CudaMover mover = CudaMover::kAuto;
};

class CudaDispatcher : public Dispatcher {
 public:
  /// The stream that the following calls use; null = the default stream. It must live as long as the dispatcher, or
  /// until another one is set. Order between calls on different streams is the caller's business.
  virtual void set_stream(CudaStream stream) = 0;
  [[nodiscard]] virtual CudaStream stream() const noexcept = 0;

  /// Changes the SM budget for the following calls, as CudaOptions::num_sms. May differ by rank.
  virtual void set_num_sms(int num_sms) = 0;

  [[nodiscard]] virtual int device() const noexcept = 0;

  /// Waits for the stream, then throws what the device has found (see the head of this file). A peer that is lost shows
  /// here within the group's timeout.
  virtual void synchronize() = 0;

  /// One line per call kind: what the tuning table chose for `num_tokens` and where that was measured.
  [[nodiscard]] virtual std::string describe_tuning(std::int64_t num_tokens) const = 0;
};

/// What a build and this machine can do.
struct CudaSupport {
  bool compiled = false;    ///< the library was built with CUDA
  int num_devices = 0;      ///< GPUs that the driver shows
  std::string reason = {};  ///< why num_devices is 0; empty otherwise
};
[[nodiscard]] CudaSupport cuda_support();

/// Creates a dispatcher on the CUDA device. Collective. Throws as make_dispatcher does, and kUnsupported where the
/// build or the machine has no CUDA device, or the GPUs of two ranks cannot reach each other.
[[nodiscard]] std::unique_ptr<CudaDispatcher> make_cuda_dispatcher(std::string_view name, Group& group,
                                                                   const DispatcherConfig& config,
                                                                   const CudaOptions& options = {});

/// The dispatchers that this build has for the CUDA device, in order of preference; empty without CUDA.
[[nodiscard]] const std::vector<DispatcherInfo>& cuda_dispatcher_registry() noexcept;

}  // namespace epistle
