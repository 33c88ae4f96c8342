// What a dispatcher is created with: the shape of its calls, equal on all ranks, and the options of a device.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <variant>

#include "epistle/placement.hpp"
#include "epistle/stream.hpp"
#include "epistle/types.hpp"

namespace epistle {

// ---- Layout of the received rows ------------------------------------------------------------------------------------

/// Each received token once, ordered by (source rank, source token), with the list of its local experts.
struct TokenMajor {};

/// One row per (token, local expert), grouped by expert, every group padded to a multiple of `alignment` rows (1 to
/// 1024): ready for a grouped GEMM. Inside a group ordered by (source rank, source token).
struct ExpertMajor {
  std::int32_t alignment = 1;
};

/// A block of `rows_per_expert` rows for every local expert, filled from its start, plus counts. Of static shape.
struct ExpertBlocks {
  std::int64_t rows_per_expert = 0;
};

using Layout = std::variant<TokenMajor, ExpertMajor, ExpertBlocks>;

// ---- Sizing ---------------------------------------------------------------------------------------------------------

/// The host learns the counts in prepare; buffers grow to what is needed, to the page.
struct Exact {};

/// Static shapes: no call waits for counts on the host, and on CUDA every call can be captured into a graph. What does
/// not fit is counted and reported, see OverflowPolicy. ExpertBlocks say their size themselves; with them
/// `rows_per_rank` is 0.
struct Capacity {
  std::int64_t rows_per_rank = 0;  ///< output rows of a rank, padding included
};

using Sizing = std::variant<Exact, Capacity>;

// ---- Wire -----------------------------------------------------------------------------------------------------------

/// Rows travel as they are given.
struct AsGiven {};

/// Rows of bf16 are quantised to fp8 e4m3 on their way, with one scale per 128 elements (the last block may be
/// shorter), and received so. With amax the largest magnitude of a block, NaNs left out and at least 1e-4:
///
///   scale   = amax * (1/448); or the power of two that is not smaller, where scales are such
///   element = e4m3 nearest to x * (448 / amax), or to x / scale where that is a power of two; at most 448; NaN = 0x7f
///
/// all in fp32, ties to even. The bits are the same on every device, and those of DeepEP's low-latency kernels.
struct Fp8Blocks {
  /// kFp32; or kUe8m0: exponent bytes, whose row is filled up with zeros to a multiple of four.
  ScaleFormat scales = ScaleFormat::kFp32;
  bool powers_of_two = false;  ///< scales of kFp32 that are powers of two; those of kUe8m0 always are
  /// How received scales lie. kColumns: exponents in words of four (kUe8m0x4); every column filled up to a multiple of
  /// four rows; with ExpertBlocks one such matrix for every local expert, one behind the other.
  ScaleOrder order = ScaleOrder::kRows;
};

using Wire = std::variant<AsGiven, Fp8Blocks>;

/// The shape of a dispatcher's calls. Must be equal on all ranks of a group (checked when it is created).
struct DispatcherConfig {
  std::int64_t hidden = 0;  ///< elements of a row; bytes for kRaw. A row must have a multiple of 16 bytes
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int64_t max_tokens = 0;  ///< most tokens that any rank gives in one call

  DType input = DType::kBf16;        ///< type of the rows given to dispatch
  std::int64_t raw_scale_bytes = 0;  ///< kRaw only: bytes of scales that go with a row, at most 2^26
  Wire wire = AsGiven{};
  /// Type of the rows given to combine: bf16, fp16 or fp32. Unset: `input`, or bf16 where that cannot be summed.
  std::optional<DType> expert_output = {};
  /// Elements of those rows. Unset: `hidden`; a kRaw dispatcher without it only dispatches.
  std::optional<std::int64_t> expert_output_hidden = {};

  Layout layout = TokenMajor{};
  Sizing sizing = Exact{};
  OverflowPolicy overflow = OverflowPolicy::kError;
  /// Unset: the dispatcher's own, the first of Capabilities::orders. Those that join domains have kDomains, which in a
  /// group of one domain is kHierarchical; all others kHierarchical.
  std::optional<SumOrder> order = {};
  bool apply_weights = true;  ///< combine multiplies by the routing weights
  bool zero_padding = true;   ///< dispatch writes zeros to padding rows; false leaves there what was there

  std::int32_t num_buffers = 1;  ///< leases that may live at once (see Received): 2 for two micro-batches; up to 8
  std::int32_t max_handles = 8;  ///< handles that may live at once, made in advance on a device; up to 4096
  Placement placement = {};      ///< in force until Dispatcher::set_placement() sets another
  /// Most slots that a rank has in any placement that will be set: buffers are made for them, and every rank counts
  /// as having them. 0: those of `placement`; a dispatcher of the trivial one keeps that.
  std::int32_t slots_per_rank = 0;
};

// ---- Options of a device; may differ by rank ------------------------------------------------------------------------

struct HostOptions {
  std::int32_t num_workers = 1;  ///< threads that copy and sum for each rank, the caller's included
  /// Transfers of at least this many bytes go past the caches. -1: EPISTLE_STREAM_BYTES, or by the size of the cache.
  std::int64_t stream_bytes = -1;
};

/// How rows cross from GPU to GPU.
enum class CudaMover : std::int32_t {
  kAuto,         ///< what the tuning table says for the call
  kVector,       ///< 16-byte loads and stores: any GPU from sm_80 on
  kBulk,         ///< bulk copies through shared memory: sm_90 and later
  kCopyEngines,  ///< rows are packed on a few SMs and moved by the copy engines; exact sizing and token_major only.
                 ///< These rows cannot be held back: ranks that do not agree on a dispatch may find their last output
                 ///< overwritten
};

/// Where the memory that a rank needs for itself on its GPU comes from in place of cudaMalloc: a framework's allocator,
/// for one. What peers address, received rows among it, is the symmetric heap's, and what network cards address is the
/// library's, always. How much it will be asked for: MemorySection::from_allocator. Both functions, or neither.
///
/// They are called on the thread that makes a dispatcher, drops it (or its last Handle), or makes the first call after
/// the group's mask has changed; with copy engines also by the first dispatch. `device` is the current device then.
/// Copies of them live until the last memory is given back. They make no call of Epistle; given to several ranks of a
/// process, they are called by several threads at once.
struct DeviceAllocator {
  /// `num_bytes` of `device`, aligned to 256, to be used on `stream` at once and on other streams as soon as the host
  /// has waited for that one. Null, or an exception: there is not so much, which is kOutOfMemory on all ranks.
  std::function<void*(std::int64_t num_bytes, int device, Stream stream)> allocate = {};
  /// Takes back what allocate() has given for the same values. No work of the dispatcher uses it any more, on no
  /// stream. Must not throw.
  std::function<void(void* memory, std::int64_t num_bytes, int device, Stream stream)> free = {};
};

struct CudaOptions {
  /// CUDA ordinal of this rank's GPU. -1: ranks are spread evenly over the visible GPUs, in blocks; several ranks on
  /// one GPU ("virtual ranks") must be threads of one process.
  int device = -1;
  /// Streaming multiprocessors that one call may occupy, one thread block on each. 0: what the tuning table says. Never
  /// more than the GPU's share of one rank, so that the kernels of all ranks on it are resident together.
  int num_sms = 0;
  CudaMover mover = CudaMover::kAuto;
  /// Flags for kernels of yours (Received::row_flags, CombineRequest::as_rows_finish): `low_latency`, expert layouts,
  /// dispatches with ids that go by lines. Dispatch is then another kernel, slower by the flags.
  bool row_flags = false;
  DeviceAllocator allocator = {};  ///< none: cudaMalloc
};

/// Chooses the device, too.
using DeviceOptions = std::variant<HostOptions, CudaOptions>;

}  // namespace epistle
