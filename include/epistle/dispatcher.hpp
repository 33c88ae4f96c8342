// Dispatch and combine.
//
//   prepare    expert ids, weights -> Handle     counts are exchanged, every row gets its place
//   dispatch   Handle, rows        -> Received   rows at the ranks of their experts; repeatable with the same handle
//   combine    Handle, rows        -> sums at the ranks of their tokens; repeatable
//
// Order of sums. Every backend, group kind, worker count and SM count gives the same bits. All arithmetic is IEEE fp32,
// round to nearest even, a product rounded before it is added (no fused multiply-add), sums started at +0; "round" is
// the rounding to the payload type. With R(t) the ranks that hold experts of token t, y the rows given to combine, w
// the routing weights, and dropped assignments left out:
//
//   expert rows (expert_major, expert_blocks)
//     hierarchical   out[t] = round( sum over r in R(t), r ascending: round( sum over the token's experts e on r, in
//                             top-k order: w[t,e] * y[e,t] ) )
//     deepep_v2      the same, ranks in the order of the last place that each has in the token's top-k
//     domains        D[t,d] = round( sum over r in R(t) in domain d, r ascending: the rounded sum of r, as above )
//                    out[t] = round( sum over the domains d of R(t), d ascending: D[t,d] )
//     flat           out[t] = round( sum over the token's experts e, in top-k order: w[t,e] * y[e,t] )
//   token rows (token_major): one row y[r,t] per (token, rank)
//     W[r,t] = sum of the weights of the token's experts on r, in top-k order
//     hierarchical   out[t] = round( sum over r in R(t), r ascending: W[r,t] * y[r,t] )
//     deepep_v2      the same, ranks in the order of the last place that each has in the token's top-k
//     domains        D[t,d] = round( sum over r in R(t) in domain d, r ascending: W[r,t] * y[r,t] )
//                    out[t] = round( sum over the domains d of R(t), d ascending: D[t,d] )
//     flat           the same, ranks in the order of the first
//
// "domains" depends on which ranks form a domain (Group::domain_size); in a group of one domain it is "hierarchical".
// All other orders give the same bits however ranks are spread over domains.
//
// "flat" over expert rows does not depend on the number of ranks. "deepep_v2" is the order of DeepEP V2's combine.
//
// Assignments to experts of ranks that are masked out (Group::set_mask) are left out as dropped ones are; the weights
// of the others stay as they are.
//
// Without weights the products are left out (no multiplication). A token without experts gives +0. A NaN that a sum or
// a product yields is stored as the quiet NaN of its type with no other bits set (bf16 7fc0, fp16 7e00, fp32 7fc00000).
//
// Where experts are placed (Placement), R(t) are the ranks of the slots that were chosen. "flat" over expert rows does
// not depend on the placement either.
//
// Choice of replica. Where an expert has several slots, integers decide which one serves a token, the same on every
// device; the place of the expert in the token's top-k plays no part. With all arithmetic modulo 2^64,
//
//   mix(x):   x = (x ^ x>>30) * bf58476d1ce4e5b9;  x = (x ^ x>>27) * 94d049bb133111eb;  x ^ x>>31
//   position  = rank of the token * max_tokens + its index in the call
//   hash      = mix( mix( mix(seed + G) + G * (expert + 1) ) + G * position ),   G = 9e3779b97f4a7c15
//
// and `seed` the step_seed of the request, u = hash >> 32 is compared with the ends of the replicas' parts, replicas by
// ascending rank: the first with u < end serves the token, end being floor(2^32 * sum of the quotas so far), at most
// 2^32 - 1, and the last end above everything. With near_first, N ranks and q the quotas of the expert's slots, sums 1:
//
//   own rank  the slot here, if there is one, where u < 2^32 * min(1, N * q * (1 + max_imbalance))
//   domain    otherwise, with hash' = mix(hash), v = hash' >> 32, w = hash' mod 2^32, and what that leaves of the
//             quotas and of every domain's tokens: where v < 2^32 * min(1, left quotas of the domain / its tokens),
//             a slot in the domain, w falling into parts in the ratio of what is left of their quotas
//   far       otherwise any slot, w falling into parts in the ratio of what is left after that
//
// Backward. The backward pass of dispatch is combine of the gradients without weights, in the same order; the backward
// pass of combine is dispatch of the gradients with the cached handle, each row times its weight (round(w * g)) where
// combine applied weights.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/config.hpp"
#include "epistle/dispatcher_info.hpp"
#include "epistle/error.hpp"
#include "epistle/export.hpp"
#include "epistle/group.hpp"
#include "epistle/received.hpp"
#include "epistle/stream.hpp"
#include "epistle/types.hpp"
#include "epistle/views.hpp"

namespace epistle {

// ---- Requests: one per call. Rows are [num_rows, hidden]; all of it memory of the dispatcher's device ---------------

struct PrepareRequest {
  IdsView expert_ids = {};   ///< [num_tokens, top_k] logical experts
  WeightsView weights = {};  ///< [num_tokens, top_k]; null = all 1
  /// Where the number of tokens is read when the call runs, at most expert_ids.num_tokens: a graph can be replayed with
  /// another number. Null: expert_ids.num_tokens. The calls that follow are made for all expert_ids.num_tokens rows:
  /// tokens beyond the number go nowhere, and combine writes zeros for them.
  const std::int32_t* num_tokens = nullptr;
  /// The most tokens that any rank brings to this call, equal on all ranks; 0 = the configuration's max_tokens. A rank
  /// with more is refused. `auto` chooses by it.
  std::int64_t most_tokens = 0;
  /// Where experts have replicas: another value in every step, so that a token is not always sent the same way. Each
  /// rank's own choice.
  std::uint64_t step_seed = 0;
  const std::uint64_t* step_seed_at = nullptr;  ///< where it is read instead, as num_tokens is
  int num_sms = 0;                              ///< CUDA: as CudaOptions::num_sms, for this call; 0 = the dispatcher's
};

struct DispatchRequest {
  Handle handle = {};       ///< of a prepare; or none, and the routing is prepared in the same call:
  IdsView expert_ids = {};  ///< as in PrepareRequest
  WeightsView weights = {};
  const std::int32_t* num_tokens = nullptr;
  std::int64_t most_tokens = 0;
  std::uint64_t step_seed = 0;
  const std::uint64_t* step_seed_at = nullptr;

  ConstRows tokens = {};   ///< [num_tokens, hidden] of the input type
  ScalesView scales = {};  ///< [num_tokens, ...], where the payload has scales; none where it is quantised on its way
  int num_sms = 0;
};

struct CombineRequest {
  Handle handle = {};      ///< or:
  Received received = {};  ///< stands for its handle, and for its expert_outputs() where `rows` is not given
  ConstRows rows = {};  ///< [num_rows, expert_output_hidden]: Received::expert_outputs() (no copy) or any other (one)
  WeightsView weights = {};  ///< [num_tokens, top_k], dense, in place of those that came with the ids: see late_weights
  Rows out = {};             ///< [num_tokens, expert_output_hidden]
  int num_sms = 0;
  /// CUDA: `rows`, the expert_outputs() of `received`, are still being written, and are taken as they are marked done
  /// (epistle/device/row_flags.hpp). Rows that nobody marks end in a timeout. Needs CudaOptions::row_flags, and sums
  /// that are not flat.
  bool as_rows_finish = false;
};

struct DispatchBackwardRequest {
  Handle handle = {};
  ConstRows grad_rows = {};  ///< [num_rows, expert_output_hidden] gradients of received rows
  /// Gradients of RowDescription::weights, in its shape. Null if and only if grad_probs is null on all ranks.
  const float* grad_weights = nullptr;
  Rows grad_tokens = {};        ///< out, [num_tokens, expert_output_hidden]: unweighted sums, in the order of combine
  float* grad_probs = nullptr;  ///< out, [num_tokens, top_k]; 0 for positions without an expert
  int num_sms = 0;
};

struct CombineBackwardRequest {
  Handle handle = {};
  ConstRows grad_out = {};  ///< [num_tokens, expert_output_hidden] gradients of combine's result
  /// The rows that were given to combine; with weights applied they yield `grad_weights`.
  ConstRows saved_rows = {};
  float* grad_weights = nullptr;  ///< out, in the shape of RowDescription::weights
  int num_sms = 0;
};

/// What a batch brings, known before it is routed.
struct BatchQuotasRequest {
  /// [num_experts] tokens that every logical expert is given by all ranks together. Of the batch itself quotas are
  /// exact, of the one before as good as that foretells it.
  const std::int64_t* expert_tokens = nullptr;
  std::int64_t* rank_tokens = nullptr;  ///< out, [num_ranks]: tokens that come to each rank by the quotas; null = none
  /// out, [num_ranks, slots_per_rank]: the same of each slot, 0 where there is none; null = not wanted.
  std::int64_t* slot_tokens = nullptr;
};

/// Bytes by how far they go.
struct LinkBytes {
  std::int64_t own = 0;      ///< within a rank's memory
  std::int64_t domain = 0;   ///< to a rank of the same domain
  std::int64_t network = 0;  ///< to a rank of another domain
};

/// Bytes that cross from one rank's memory to another's for one rank's tokens, rows and scales.
struct WireBytes {
  std::int64_t dispatch = 0;  ///< sent
  std::int64_t combine = 0;   ///< received back
  // The same by link, and with them what stays on a rank. A row that is forwarded counts once for every link.
  LinkBytes dispatch_links = {};
  LinkBytes combine_links = {};
  /// What prepare sends over the network besides: headers, which tell other domains of the rows that will come.
  std::int64_t header_bytes = 0;
};

enum class Health : std::int32_t {
  kOk,
  kPeerLost,  ///< a rank has gone: suspects() names it
  kTimeout,   ///< a rank is late by more than the group's timeout: likewise
  kAborted,   ///< a rank has called abort(): likewise
  kBroken,    ///< the group has failed otherwise: the next call throws how
};

class DispatcherImpl;

/// Dispatch and combine for the ranks of a group, on one device. Move-only.
///
/// Every call is collective: all ranks of the group make the same calls in the same order; a rank's calls come from one
/// thread at a time. Inputs are checked on every rank before a byte arrives that anybody looks at: the rank whose input
/// is bad throws what is wrong with it, the others throw kPeerRejected naming that rank, and the dispatcher stays
/// usable. So it does when ranks make different calls at once, of this or another dispatcher or of the group: all throw
/// kShapeMismatch. A rank that runs out of memory, or meets an error of the system, gives kOutOfMemory or kSystem on
/// all ranks, and nothing has happened. What cannot be known before the call runs on a GPU is thrown later: see
/// epistle/cuda.hpp.
///
/// `stream` orders the work on a GPU: a cudaStream_t. The host has none, and calls are done when they return.
class EPISTLE_API Dispatcher {
 public:
  /// Collective. Throws kNotFound for a name that the device does not have, kInvalidArgument, kUnsupported (see
  /// DispatcherInfo::cannot_serve), kShapeMismatch where the ranks' configurations differ (names field, ranks and
  /// values), kOutOfMemory.
  Dispatcher(Group& group, std::string_view name, const DispatcherConfig& config,
             const DeviceOptions& options = HostOptions{});
  ~Dispatcher();
  Dispatcher(Dispatcher&&) noexcept;
  Dispatcher& operator=(Dispatcher&&) noexcept;
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  [[nodiscard]] const DispatcherInfo& info() const noexcept;
  [[nodiscard]] const DispatcherConfig& config() const noexcept;

  /// Exchanges counts and gives every row its place. Throws kInvalidArgument (ids out of range or repeated in a row,
  /// more tokens than max_tokens, wrong top_k, all handles in use), kCapacityExceeded, kPeerRejected, kPeerLost,
  /// kTimeout.
  [[nodiscard]] Handle prepare(const PrepareRequest& request, Stream stream = {});

  /// Moves rows to the ranks of their experts. Throws as prepare does; and kInvalidArgument where all buffers are
  /// leased.
  [[nodiscard]] Received dispatch(const DispatchRequest& request, Stream stream = {});

  /// The same in two halves. The send half returns when this rank's rows are on their way, the receive half when all
  /// for this rank have arrived; what another rank was refused for is thrown by either. What the request shows must
  /// stay unchanged in between. One send half may be open at a time; other dispatchers, also of the same group, can be
  /// used meanwhile.
  [[nodiscard]] Pending dispatch_send(const DispatchRequest& request, Stream stream = {});
  [[nodiscard]] Received dispatch_receive(Pending pending, Stream stream = {});

  /// Sums expert outputs back to their tokens, in the order documented above.
  void combine(const CombineRequest& request, Stream stream = {});
  [[nodiscard]] Pending combine_send(const CombineRequest& request, Stream stream = {});
  void combine_receive(Pending pending, Stream stream = {});

  /// Gradient of dispatch.
  void dispatch_backward(const DispatchBackwardRequest& request, Stream stream = {});

  /// Gradient of combine: the gradients go to every row that took part, times the row's weight where weights are
  /// applied. The result's rows() are [num_rows, expert_output_hidden], zero at padding. With weights applied,
  /// `saved_rows` yield `grad_weights`: the dot product of saved row and gradient row, summed in 16 lanes (element i to
  /// lane i mod 16, ascending), lanes l and l+8 added, then l and l+4, l+2, l+1.
  [[nodiscard]] Received combine_backward(const CombineBackwardRequest& request, Stream stream = {});

  /// Collective: the calls that follow route by `placement`, on all ranks from the same call on. Weights must be in
  /// their slots by then; nothing is moved here. Handles that are prepared already go on with the placement that they
  /// were prepared with (RowDescription::placement_generation): their rows come to its slots. On CUDA the change takes
  /// its turn on `stream`, and only the host waits for the other ranks. Replays of graphs behind it go by it, too; what
  /// was captured keeps the number of rows that it takes from private memory, and its description is that of the
  /// placement in force when its counts are read (Handle::wait_stats()).
  /// Throws kInvalidArgument where the dispatcher has no room for it (DispatcherConfig::slots_per_rank), its generation
  /// is not above the one in force, a send half is open, or the stream is being captured; kShapeMismatch, on all ranks,
  /// where these give different placements. The one in force stays then.
  void set_placement(const Placement& placement, Stream stream = {});
  /// The one in force.
  [[nodiscard]] const Placement& placement() const noexcept;

  /// The calls that follow choose replicas by quotas that suit one batch, until the next ones or the next placement:
  /// the fullest rank gets as little as the slots in force allow, to the token (of more than 2^30 tokens, to the power
  /// of two that brings them below it). Nothing is exchanged, and no rank waits: each that should share out alike gives
  /// the same tokens; where they differ all rows arrive nevertheless, less evenly. Integers only, as are all tokens:
  /// the same bits on every device. Which tokens go where the hash says, so that counts of a batch deviate by chance.
  /// On CUDA one kernel on `stream` reads device memory when it runs, and can be captured.
  /// Throws kInvalidArgument without tokens, where experts are not placed, and where replicas near a token come first:
  /// their parts are made of the quotas beforehand.
  void set_batch_quotas(const BatchQuotasRequest& request, Stream stream = {});

  /// How many tokens of this rank every logical expert was given, [num_experts], by all prepared routings since the
  /// dispatcher was created: what load is measured from. Routings that were refused do not count. May be called from
  /// any thread; waits for no call, so on CUDA those that are still to run are not in it.
  [[nodiscard]] std::vector<std::int64_t> expert_tokens() const;

  /// The same of the tokens that were lost because the ranks of their experts are masked out (Group::set_mask).
  [[nodiscard]] std::vector<std::int64_t> lost_tokens() const;

  /// Waits until all calls so far are done, then throws what they have found. A peer that is lost shows here within the
  /// group's timeout. The host has nothing to wait for.
  void wait();

  /// How the group stands, as far as this rank knows: waits for nothing, and takes no lock.
  [[nodiscard]] Health poll() const noexcept;
  /// The ranks that poll() speaks of. Under kPeerLost all that have gone by now, in ascending order: a survivor that
  /// ends joins them.
  [[nodiscard]] std::vector<int> suspects() const;
  /// Ends every wait, on all ranks: their calls throw kAborted that names this rank, and the group is broken. May be
  /// called from any thread, also while a call is under way.
  void abort() noexcept;

  /// What one dispatch and one combine with `handle` put on the wire, as this dispatcher moves rows. Waits for the
  /// counts as Handle::wait_stats() does.
  [[nodiscard]] WireBytes wire_bytes(const Handle& handle) const;
  /// Bytes that this rank has put on links to other domains so far, headers included, as the links have counted them.
  /// 0 for dispatchers whose ranks address each other's memory across domains.
  [[nodiscard]] std::int64_t network_bytes() const noexcept;
  /// Bytes of memory that all ranks address, taken for this rank so far; DispatcherInfo::memory() predicts them.
  [[nodiscard]] std::int64_t shared_bytes() const noexcept;
  /// The same as the operating system, or the driver, counts it.
  [[nodiscard]] std::int64_t resident_bytes() const;
  /// CUDA: the ordinal of this rank's GPU. Host: -1.
  [[nodiscard]] int device_ordinal() const noexcept;
  /// CUDA: one line per kind of call: what the tuning table chose for `num_tokens` and where that was measured.
  [[nodiscard]] std::string describe_tuning(std::int64_t num_tokens) const;

 private:
  std::shared_ptr<DispatcherImpl> impl_;
};

}  // namespace epistle
