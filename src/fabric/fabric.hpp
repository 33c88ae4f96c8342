// The network of the machine, as libfabric shows it: which providers there are, and an endpoint whose peers put bytes
// into each other's memory. A build without libfabric has without_fabric.cpp in place of ofi/, which says so.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "group/domain_link.hpp"

namespace epistle {

/// A way over the network that could carry rows: what fi_getinfo lists for reliable one-sided writes.
struct FabricWay {
  std::string provider;             ///< "tcp;ofi_rxm", "verbs;ofi_rxm", "efa", "shm"
  std::string fabric;               ///< "192.0.2.0/24"
  std::string domain;               ///< "eth0", "mlx5_0"
  std::string address;              ///< "192.0.2.2"; empty where it is no address of the internet protocol
  bool is_ordered = false;          ///< writes to one peer arrive in the order in which they were made
  bool needs_local_keys = false;    ///< sources must be registered as well
  bool reaches_gpu_memory = false;  ///< FI_HMEM
};

struct FabricRequest {
  std::string provider = {};           ///< as EPISTLE_FABRIC_PROVIDER names it; empty = the first that crosses hosts
  std::string address = {};            ///< of this host, towards the others; empty = any
  std::vector<std::string> nics = {};  ///< names or addresses of cards; empty = that of the address, or all (see rails)
  int rail = 0;                        ///< which of the cards, counted round: the rank's index on its host
  bool gpu_memory = false;             ///< is to be registered as well, where the provider can (FI_HMEM)
  bool stage_sources = false;          ///< as if the provider wanted keys of sources; for tests
};

/// "libfabric 1.17", or why there is none.
[[nodiscard]] std::string describe_fabric_library();

/// In the order of libfabric: the fastest first. Throws kUnsupported without libfabric.
[[nodiscard]] std::vector<FabricWay> list_fabric_ways(const FabricRequest& request);

/// The one that is taken. Throws kUnsupported, with what there is.
[[nodiscard]] FabricWay choose_fabric_way(const FabricRequest& request);

/// Memory of this process that peers may write, as they must know it.
struct FabricKey {
  std::uint64_t key = 0;
  std::uint64_t base = 0;  ///< of the first byte
};

struct FabricTarget {
  int peer = -1;  ///< number among the addresses of connect()
  FabricKey key;
  std::int64_t offset = 0;
};

/// Calls come from one thread at a time. What is under way moves on by a thread of its own.
class FabricEndpoint {
 public:
  FabricEndpoint() = default;
  virtual ~FabricEndpoint() = default;
  FabricEndpoint(const FabricEndpoint&) = delete;
  FabricEndpoint& operator=(const FabricEndpoint&) = delete;

  [[nodiscard]] virtual const FabricWay& way() const noexcept = 0;
  /// What the others must know to reach this one.
  [[nodiscard]] virtual std::string address() const = 0;
  /// Once: where everybody is. An empty address stands for who is not reached from here.
  virtual void connect(const std::vector<std::string>& addresses) = 0;

  /// Lets peers write there, for as long as the endpoint lives.
  [[nodiscard]] virtual FabricKey expose(void* data, std::int64_t num_bytes) = 0;

  /// The same of GPU memory; `is_target`: peers may write there, otherwise this end only puts from it. Throws kSystem
  /// where libfabric was built without CUDA.
  [[nodiscard]] virtual FabricKey register_gpu(const GpuSpan& span, bool is_target) = 0;
  /// Lets go of what begins there; nothing is under way to it or from it.
  virtual void withdraw(const std::byte* data) = 0;

  /// Starts to write, and says how many of the bytes, from the first: ask again for the rest. 0 where as much is under
  /// way as may be. The source must not change before num_under_way(peer, epoch) is 0. Waits for nothing. Throws
  /// kPeerLost or kSystem that the transport has met, with the peer's number.
  [[nodiscard]] virtual std::int64_t try_put(const FabricTarget& target, const void* source, std::int64_t num_bytes,
                                             std::uint32_t epoch) = 0;

  /// Writes of an epoch to a peer that have not been delivered.
  [[nodiscard]] virtual std::int64_t num_under_way(int peer, std::uint32_t epoch) = 0;
  [[nodiscard]] virtual std::int64_t num_under_way() = 0;

  /// Runs `look` while nothing moves: for memory that peers write.
  virtual void look(const std::function<void()>& look) = 0;
};

/// Throws kUnsupported, kSystem.
[[nodiscard]] std::unique_ptr<FabricEndpoint> open_fabric_endpoint(const FabricRequest& request);

}  // namespace epistle
