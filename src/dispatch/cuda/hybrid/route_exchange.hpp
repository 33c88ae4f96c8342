// What every rank learns of a routing before its first use across domains: prepare has given all rows their places, and
// a rank's peers have to know those of its tokens in their domain.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "dispatch/cuda/engine/context.hpp"
#include "dispatch/cuda/engine/cuda_handle.hpp"
#include "dispatch/cuda/engine/device_buffers.hpp"
#include "dispatch/cuda/hybrid/link_buffers.hpp"
#include "dispatch/cuda/hybrid/route_arrays.hpp"
#include "dispatch/link/route_tables.hpp"

namespace epistle::cuda {

class RouteExchange {
 public:
  RouteExchange(EngineContext& context, LinkBuffers& links);

  /// Not collective; throws.
  void take_memory();

  /// Collective where the handle is new: the tables of its routing.
  [[nodiscard]] const RouteTables& learn(const CudaHandleState& handle);
  /// Not collective: its tables are on the GPU for what is put on the stream behind this. The stream has nothing left
  /// to do. Throws.
  [[nodiscard]] const RouteArrays& bring(const CudaHandleState& handle, const RouteTables& tables);
  /// Not collective, and for any handle: rows of its tokens by link, and what crosses in prepare.
  [[nodiscard]] WireBytes wire_bytes(const CudaHandleState& handle) const;

 private:
  struct Known {
    std::uint64_t prepare_id = 0;
    RouteTables tables;
  };

  [[nodiscard]] const Domains& domains() const noexcept { return context_.group->gpu_domains(); }
  /// Waits for the stream, and reads where this rank's tokens go.
  [[nodiscard]] TokenPlacesView read_places(const CudaHandleState& handle) const;
  void exchange_records(RouteTables& tables, const TokenPlacesView& places);

  EngineContext& context_;
  LinkBuffers& links_;
  std::unordered_map<const CudaHandleState*, Known> known_;
  PinnedMemory place_memory_;
  PlaceArrays places_;
  DeviceBuffer memory_;
  RouteArrays arrays_;
  PinnedMemory staging_;       ///< of `memory_`, tables on their way
  std::uint64_t brought_ = 0;  ///< prepare of the handle whose tables are on the GPU; 0 = none
};

}  // namespace epistle::cuda
