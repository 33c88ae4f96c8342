// An endpoint of libfabric for one-sided writes. One lock: whatever is done with the endpoint, and what its thread does
// to move on what is under way (the provider tcp moves nothing by itself, on neither side), happens one after the
// other.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <fmt/format.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

#include "epistle/error.hpp"

#include "core/kept_signals.hpp"
#include "core/random_bytes.hpp"
#include "fabric/fabric.hpp"
#include "fabric/ofi/ofi_library.hpp"
#include "fabric/ofi/ofi_ways.hpp"
#include "group/descriptor.hpp"

namespace epistle::ofi {
namespace {

// Writes under way: enough to keep a link busy with small ones, and bounded.
constexpr std::size_t kMaxUnderWay = 512;
constexpr std::size_t kCompletionsPerRead = 32;
// Sources that are not registered go through this where the provider wants keys of them.
constexpr std::int64_t kStageSlotBytes = std::int64_t{128} << 10;
constexpr int kNumStageSlots = 64;
// How long the thread sleeps at most; where the provider cannot wake it, that is how late it sees what has come.
constexpr int kMaxSleepMs = 5;
constexpr std::chrono::microseconds kPauseWithoutWake{50};

/// A write under way: what libfabric gives back is the address of its context.
struct Write {
  fi_context2 context{};
  int peer = -1;
  std::uint32_t epoch = 0;
  int stage_slot = -1;
};

/// The first error that the transport has met.
struct TransportError {
  int code = 0;
  int peer = -1;
};

class OfiEndpoint final : public FabricEndpoint {
 public:
  explicit OfiEndpoint(const FabricRequest& request) : info_(choose_info(request)), way_(way_of(*info_)) {
    way_.needs_local_keys = way_.needs_local_keys || request.stage_sources;
    const OfiApi& api = load_ofi();
    const KeptSignals signals;
    fid_fabric* fabric = nullptr;
    require(api.open_fabric(info_->fabric_attr, &fabric, nullptr), "fi_fabric");
    fabric_.reset(fabric);
    fid_domain* domain = nullptr;
    require(fi_domain(fabric, info_.get(), &domain, nullptr), "fi_domain");
    domain_.reset(domain);
    open_queue();
    open_vector();
    fid_ep* endpoint = nullptr;
    require(fi_endpoint(domain, info_.get(), &endpoint, nullptr), "fi_endpoint");
    endpoint_.reset(endpoint);
    require(fi_ep_bind(endpoint, &queue_->fid, FI_TRANSMIT | FI_RECV), "fi_ep_bind");
    require(fi_ep_bind(endpoint, &vector_->fid, 0), "fi_ep_bind");
    require(fi_enable(endpoint), "fi_enable");
    make_writes();
    if (way_.needs_local_keys) make_stage();
    wake_ = own_descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    thread_ = std::thread([this] { run(); });
  }

  ~OfiEndpoint() override {
    stops_.store(true, std::memory_order_release);
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof(one));
    thread_.join();
    // In this order: what is closed later is used by what is closed first.
    endpoint_.reset();
    regions_.clear();
  }

  OfiEndpoint(const OfiEndpoint&) = delete;
  OfiEndpoint& operator=(const OfiEndpoint&) = delete;

  [[nodiscard]] const FabricWay& way() const noexcept override { return way_; }

  [[nodiscard]] std::string address() const override {
    std::size_t num_bytes = 256;
    std::string bytes(num_bytes, '\0');
    require(fi_getname(&endpoint_->fid, bytes.data(), &num_bytes), "fi_getname");
    bytes.resize(num_bytes);
    return bytes;
  }

  void connect(const std::vector<std::string>& addresses) override {
    const std::lock_guard lock(mutex_);
    peers_.assign(addresses.size(), FI_ADDR_UNSPEC);
    under_way_.resize(addresses.size());
    for (std::size_t peer = 0; peer < addresses.size(); ++peer) {
      if (addresses[peer].empty()) continue;
      const int num_inserted = fi_av_insert(vector_.get(), addresses[peer].data(), 1, &peers_[peer], 0, nullptr);
      if (num_inserted == 1) continue;
      throw Error(ErrorCode::kSystem, fmt::format("libfabric does not take the address of peer {}", peer),
                  {.peer_rank = static_cast<int>(peer)});
    }
  }

  [[nodiscard]] FabricKey expose(void* data, std::int64_t num_bytes) override {
    if (num_bytes == 0) return {};
    const std::lock_guard lock(mutex_);
    return key_of(register_memory(data, num_bytes, FI_REMOTE_WRITE | FI_WRITE), data);
  }

  [[nodiscard]] FabricKey register_gpu(const GpuSpan& span, bool is_target) override {
    if (span.num_bytes == 0) return {};
    const std::lock_guard lock(mutex_);
    const std::uint64_t access = is_target ? FI_REMOTE_WRITE | FI_WRITE : FI_WRITE;
    return key_of(register_memory(span.data, span.num_bytes, access, span.gpu), span.data);
  }

  void withdraw(const std::byte* data) override {
    const std::lock_guard lock(mutex_);
    regions_.erase(
        std::remove_if(regions_.begin(), regions_.end(), [data](const Region& region) { return region.data == data; }),
        regions_.end());
  }

  [[nodiscard]] std::int64_t try_put(const FabricTarget& target, const void* source, std::int64_t num_bytes,
                                     std::uint32_t epoch) override {
    const std::lock_guard lock(mutex_);
    throw_error();
    Source from{.data = static_cast<const std::byte*>(source), .num_bytes = num_bytes, .registered = nullptr};
    if (way_.needs_local_keys || has_gpu_memory_) from.registered = find_region(source, num_bytes);
    from.is_staged = way_.needs_local_keys && from.registered == nullptr;
    // No more than fits into a slot: whoever asks looks after the time and the peer between parts.
    if (from.is_staged) from.num_bytes = std::min(num_bytes, kStageSlotBytes);
    const auto has_room = [&] { return !free_writes_.empty() && (!from.is_staged || !free_slots_.empty()); };
    if (!has_room()) {
      move_on();
      throw_error();
      if (!has_room()) return 0;
    }
    return put_now(target, from, epoch) ? from.num_bytes : 0;
  }

  [[nodiscard]] std::int64_t num_under_way(int peer, std::uint32_t epoch) override {
    const std::lock_guard lock(mutex_);
    throw_error();
    move_on();
    const auto& epochs = under_way_[static_cast<std::size_t>(peer)];
    const auto found = epochs.find(epoch);
    return found == epochs.end() ? 0 : found->second;
  }

  [[nodiscard]] std::int64_t num_under_way() override {
    const std::lock_guard lock(mutex_);
    throw_error();
    move_on();
    throw_error();
    return static_cast<std::int64_t>(writes_.size() - free_writes_.size());
  }

  void look(const std::function<void()>& look) override {
    const std::lock_guard lock(mutex_);
    move_on();
    look();
  }

 private:
  struct Region {
    const std::byte* data;
    std::int64_t num_bytes;
    Owned<fid_mr> handle;
  };

  /// What a put writes from.
  struct Source {
    const std::byte* data;
    std::int64_t num_bytes;
    fid_mr* registered;      ///< null where it is not, or need not be
    bool is_staged = false;  ///< goes by way of the stage
  };

  void open_queue() {
    fi_cq_attr attributes{};
    attributes.format = FI_CQ_FORMAT_CONTEXT;
    attributes.size = 2 * kMaxUnderWay;
    attributes.wait_obj = FI_WAIT_FD;
    fid_cq* queue = nullptr;
    if (fi_cq_open(domain_.get(), &attributes, &queue, nullptr) == 0 &&
        fi_control(&queue->fid, FI_GETWAIT, &queue_fd_) == 0) {
      queue_.reset(queue);
      return;
    }
    if (queue != nullptr) queue_.reset(queue);
    queue_fd_ = -1;
    attributes.wait_obj = FI_WAIT_NONE;
    queue = nullptr;
    require(fi_cq_open(domain_.get(), &attributes, &queue, nullptr), "fi_cq_open");
    queue_.reset(queue);
  }

  void open_vector() {
    fi_av_attr attributes{};
    attributes.type = info_->domain_attr->av_type == FI_AV_MAP ? FI_AV_MAP : FI_AV_TABLE;
    fid_av* vector = nullptr;
    require(fi_av_open(domain_.get(), &attributes, &vector, nullptr), "fi_av_open");
    vector_.reset(vector);
  }

  void make_writes() {
    writes_.resize(std::clamp<std::size_t>(info_->tx_attr->size / 2, 1, kMaxUnderWay));
    for (Write& write : writes_) free_writes_.push_back(&write);
  }

  void make_stage() {
    stage_.resize(static_cast<std::size_t>(kStageSlotBytes * kNumStageSlots));
    stage_region_ = register_memory(stage_.data(), static_cast<std::int64_t>(stage_.size()), FI_WRITE);
    for (int slot = 0; slot < kNumStageSlots; ++slot) free_slots_.push_back(slot);
  }

  [[nodiscard]] FabricKey key_of(fid_mr* region, const void* data) const {
    const bool by_address = (info_->domain_attr->mr_mode & FI_MR_VIRT_ADDR) != 0;
    return {.key = fi_mr_key(region), .base = by_address ? reinterpret_cast<std::uint64_t>(data) : 0};
  }

  /// `gpu`: -1 = host memory.
  fid_mr* register_memory(void* data, std::int64_t num_bytes, std::uint64_t access, int gpu = -1) {
    // Who does not know the key cannot write: it is not to be guessed where this side chooses it.
    std::uint64_t key = 0;
    if ((info_->domain_attr->mr_mode & FI_MR_PROV_KEY) == 0) {
      fill_random(&key, std::min(sizeof(key), info_->domain_attr->mr_key_size));
    }
    const iovec span{data, static_cast<std::size_t>(num_bytes)};
    fi_mr_attr attributes{};
    attributes.mr_iov = &span;
    attributes.iov_count = 1;
    attributes.access = access;
    attributes.requested_key = key;
    attributes.iface = gpu >= 0 ? FI_HMEM_CUDA : FI_HMEM_SYSTEM;
    if (gpu >= 0) attributes.device.cuda = gpu;
    fid_mr* region = nullptr;
    require(fi_mr_regattr(domain_.get(), &attributes, 0, &region),
            gpu >= 0 ? "fi_mr_regattr of GPU memory" : "fi_mr_regattr");
    has_gpu_memory_ = has_gpu_memory_ || gpu >= 0;
    Owned<fid_mr> owned(region);
    if ((info_->domain_attr->mr_mode & FI_MR_ENDPOINT) != 0) {
      require(fi_mr_bind(region, &endpoint_->fid, 0), "fi_mr_bind");
      require(fi_mr_enable(region), "fi_mr_enable");
    }
    regions_.push_back({static_cast<const std::byte*>(data), num_bytes, std::move(owned)});
    return region;
  }

  /// Null where the source is not registered.
  [[nodiscard]] fid_mr* find_region(const void* source, std::int64_t num_bytes) const {
    const auto* const begin = static_cast<const std::byte*>(source);
    const auto found = std::find_if(regions_.begin(), regions_.end(), [&](const Region& region) {
      return begin >= region.data && begin + num_bytes <= region.data + region.num_bytes;
    });
    return found == regions_.end() ? nullptr : found->handle.get();
  }

  bool put_now(const FabricTarget& target, const Source& source, std::uint32_t epoch) {
    Write* const write = free_writes_.back();
    write->peer = target.peer;
    write->epoch = epoch;
    write->stage_slot = source.is_staged ? free_slots_.back() : -1;
    const std::byte* data = source.data;
    if (source.is_staged) {
      std::byte* const slot = stage_.data() + write->stage_slot * kStageSlotBytes;
      std::memcpy(slot, data, static_cast<std::size_t>(source.num_bytes));
      data = slot;
    }
    const iovec local{const_cast<std::byte*>(data), static_cast<std::size_t>(source.num_bytes)};
    fid_mr* const registered = source.is_staged ? stage_region_ : source.registered;
    void* descriptor = registered != nullptr ? fi_mr_desc(registered) : nullptr;
    const fi_rma_iov remote{target.key.base + static_cast<std::uint64_t>(target.offset),
                            static_cast<std::size_t>(source.num_bytes), target.key.key};
    fi_msg_rma message{};
    message.msg_iov = &local;
    message.desc = &descriptor;
    message.iov_count = 1;
    message.addr = peers_[static_cast<std::size_t>(target.peer)];
    message.rma_iov = &remote;
    message.rma_iov_count = 1;
    message.context = &write->context;
    const ssize_t status = fi_writemsg(endpoint_.get(), &message, FI_DELIVERY_COMPLETE | FI_COMPLETION);
    if (status == -FI_EAGAIN) {
      move_on();
      return false;
    }
    if (status != 0) {
      note_error(static_cast<int>(-status), target.peer);
      throw_error();
    }
    free_writes_.pop_back();
    if (source.is_staged) free_slots_.pop_back();
    ++under_way_[static_cast<std::size_t>(target.peer)][epoch];
    return true;
  }

  void note_error(int code, int peer) {
    if (error_.code == 0) error_ = {code, peer};
  }

  void throw_error() const {
    if (error_.code == 0) return;
    throw Error(error_.peer >= 0 ? ErrorCode::kPeerLost : ErrorCode::kSystem,
                fmt::format("bytes to peer {} did not arrive: {} ({} over {})", error_.peer,
                            load_ofi().error_text(error_.code), way_.provider, way_.domain),
                {.peer_rank = error_.peer});
  }

  void complete(void* context) {
    if (context == nullptr) return;
    auto* const write = static_cast<Write*>(context);
    auto& epochs = under_way_[static_cast<std::size_t>(write->peer)];
    const auto entry = epochs.find(write->epoch);
    if (--entry->second == 0) epochs.erase(entry);
    if (write->stage_slot >= 0) free_slots_.push_back(write->stage_slot);
    free_writes_.push_back(write);
  }

  /// Reads what has been completed; the provider moves on what it has under way.
  bool move_on() {
    bool any = false;
    for (;;) {
      std::array<fi_cq_entry, kCompletionsPerRead> entries{};
      const ssize_t num_read = fi_cq_read(queue_.get(), entries.data(), entries.size());
      if (num_read == -FI_EAVAIL) {
        if (!read_error()) return any;
        any = true;
        continue;
      }
      if (num_read == -FI_EAGAIN || num_read == 0) return any;
      if (num_read < 0) {
        note_error(static_cast<int>(-num_read), -1);
        return any;
      }
      for (ssize_t idx = 0; idx < num_read; ++idx) complete(entries[static_cast<std::size_t>(idx)].op_context);
      any = true;
    }
  }

  /// False where there is none to read after all: asking again at once could go on for ever.
  bool read_error() {
    fi_cq_err_entry entry{};
    const ssize_t num_read = fi_cq_readerr(queue_.get(), &entry, 0);
    if (num_read < 0 && num_read != -FI_EAGAIN) note_error(static_cast<int>(-num_read), -1);
    if (num_read <= 0) return false;
    const int peer = entry.op_context != nullptr ? static_cast<Write*>(entry.op_context)->peer : -1;
    note_error(entry.err, peer);
    complete(entry.op_context);
    return true;
  }

  void run() {
    while (!stops_.load(std::memory_order_acquire)) {
      bool may_sleep = false;
      {
        const std::lock_guard lock(mutex_);
        (void)move_on();
        fid* waited[] = {&queue_->fid};
        may_sleep = queue_fd_ < 0 || fi_trywait(fabric_.get(), waited, 1) == 0;
      }
      if (!may_sleep) continue;
      if (queue_fd_ < 0) {
        std::this_thread::sleep_for(kPauseWithoutWake);
        continue;
      }
      pollfd entries[] = {{queue_fd_, POLLIN, 0}, {wake_.get(), POLLIN, 0}};
      (void)::poll(entries, 2, kMaxSleepMs);
    }
  }

  InfoList info_;
  FabricWay way_;
  Owned<fid_fabric> fabric_;
  Owned<fid_domain> domain_;
  Owned<fid_cq> queue_;
  Owned<fid_av> vector_;
  Owned<fid_ep> endpoint_;
  int queue_fd_ = -1;
  std::mutex mutex_;  ///< of everything below, and of the objects above once the thread runs
  std::vector<Region> regions_;
  std::vector<fi_addr_t> peers_;
  std::vector<std::map<std::uint32_t, std::int64_t>> under_way_;  ///< by peer: of an epoch
  std::vector<Write> writes_;
  std::vector<Write*> free_writes_;
  std::vector<std::byte> stage_;
  fid_mr* stage_region_ = nullptr;
  bool has_gpu_memory_ = false;  ///< was registered
  std::vector<int> free_slots_;
  TransportError error_;
  UniqueFd wake_;
  std::atomic<bool> stops_{false};
  std::thread thread_;
};

}  // namespace
}  // namespace epistle::ofi

namespace epistle {

std::unique_ptr<FabricEndpoint> open_fabric_endpoint(const FabricRequest& request) {
  return std::make_unique<ofi::OfiEndpoint>(request);
}

}  // namespace epistle
