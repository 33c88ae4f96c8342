#include "group/net/pmix_gathering.hpp"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <pmix.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/loaded_library.hpp"

namespace epistle {
namespace {

constexpr const char* kPmixLibrary = "libpmix.so.2";

/// The functions that are used, of a library that is loaded when the first rank meets others by it.
struct PmixApi {
  decltype(&PMIx_Init) init = nullptr;
  decltype(&PMIx_Finalize) finalize = nullptr;
  decltype(&PMIx_Put) put = nullptr;
  decltype(&PMIx_Commit) commit = nullptr;
  decltype(&PMIx_Fence_nb) fence = nullptr;
  decltype(&PMIx_Get) get = nullptr;
  decltype(&PMIx_Error_string) error_text = nullptr;
};

PmixApi load_pmix() {
  constexpr const char* kAdvice =
      "install PMIx 3.1 or later (the package libpmix2), or set MASTER_ADDR to the address of rank 0's host on all "
      "ranks";
  LoadedLibrary library(kPmixLibrary, LoadedLibrary::Symbols::kForOthers);
  library.require_loaded("ranks of several hosts would meet by PMIx", kAdvice);
  const auto find = [&library](auto& function, const char* name) { library.require(function, name, kAdvice); };
  PmixApi api;
  find(api.init, "PMIx_Init");
  find(api.finalize, "PMIx_Finalize");
  find(api.put, "PMIx_Put");
  find(api.commit, "PMIx_Commit");
  find(api.fence, "PMIx_Fence_nb");
  find(api.get, "PMIx_Get");
  find(api.error_text, "PMIx_Error_string");
  library.stay();  // it has threads of its own
  return api;
}

const PmixApi& pmix() {
  static const PmixApi api = load_pmix();
  return api;
}

void require_pmix(pmix_status_t status, const char* what) {
  if (status == PMIX_SUCCESS || status == PMIX_OPERATION_SUCCEEDED) return;
  throw Error(ErrorCode::kSystem, fmt::format("{} failed: {}", what, pmix().error_text(status)),
              {.phase = Phase::kRendezvous});
}

/// This process as the server knows it, from the first meeting to the end of the process: a launcher takes a process
/// that leaves without a word for one that has failed, and a server may not let one in twice.
class PmixClient {
 public:
  PmixClient() : finalize_(pmix().finalize) { require_pmix(pmix().init(&self_, nullptr, 0), "PMIx_Init"); }
  ~PmixClient() { (void)finalize_(nullptr, 0); }
  PmixClient(const PmixClient&) = delete;
  PmixClient& operator=(const PmixClient&) = delete;

  [[nodiscard]] const pmix_proc_t& self() const noexcept { return self_; }

 private:
  decltype(PmixApi::finalize) finalize_;
  pmix_proc_t self_{};
};

const PmixClient& pmix_client() {
  static const PmixClient client;
  return client;
}

/// What a fence leaves behind, whether or not anybody still waits for it.
struct FenceEnd {
  std::mutex mutex;
  std::condition_variable has_come;
  bool is_over = false;
  pmix_status_t status = PMIX_SUCCESS;

  void come(pmix_status_t with) {
    const std::lock_guard lock(mutex);
    is_over = true;
    status = with;
    has_come.notify_all();
  }
};

void end_fence(pmix_status_t status, void* context) {
  const std::unique_ptr<std::shared_ptr<FenceEnd>> end(static_cast<std::shared_ptr<FenceEnd>*>(context));
  (*end)->come(status);
}

/// Collective over the job: all that was put is there for all.
void pass_fence(const PmixRank& rank) {
  pmix_proc_t everybody = pmix_client().self();
  everybody.rank = PMIX_RANK_WILDCARD;
  pmix_info_t collects{};
  std::strncpy(collects.key, PMIX_COLLECT_DATA, PMIX_MAX_KEYLEN);
  collects.value.type = PMIX_BOOL;
  collects.value.data.flag = true;
  const auto end = std::make_shared<FenceEnd>();
  auto context = std::make_unique<std::shared_ptr<FenceEnd>>(end);
  const pmix_status_t status = pmix().fence(&everybody, 1, &collects, 1, &end_fence, context.get());
  if (status == PMIX_OPERATION_SUCCEEDED) return;  // over already, and nobody calls back
  require_pmix(status, "PMIx_Fence_nb");
  (void)context.release();  // end_fence has it
  std::unique_lock lock(end->mutex);
  if (!end->has_come.wait_for(lock, rank.timeout, [&] { return end->is_over; })) {
    throw Error(
        ErrorCode::kTimeout,
        fmt::format("not all {} ranks came to the launcher's PMIx server within {} ms; were all of them started, "
                    "and do all join a group?",
                    rank.num_ranks, rank.timeout.count()),
        {.rank = rank.rank, .phase = Phase::kRendezvous});
  }
  require_pmix(end->status, "PMIx_Fence_nb");
}

/// Of what the library has allocated.
struct FreedByC {
  void operator()(void* memory) const noexcept { std::free(memory); }  // NOLINT(cppcoreguidelines-no-malloc)
};

std::string text_of_rank(int rank, const std::string& key) {
  pmix_proc_t who = pmix_client().self();
  who.rank = static_cast<pmix_rank_t>(rank);
  pmix_value_t* found = nullptr;
  require_pmix(pmix().get(&who, key.c_str(), nullptr, 0, &found), "PMIx_Get");
  const std::unique_ptr<pmix_value_t, FreedByC> value(found);
  if (value->type != PMIX_BYTE_OBJECT) {
    throw Error(ErrorCode::kSystem, fmt::format("rank {} put something else than a text to PMIx", rank),
                {.peer_rank = rank, .phase = Phase::kRendezvous});
  }
  const std::unique_ptr<char, FreedByC> bytes(value->data.bo.bytes);
  return {bytes.get(), value->data.bo.size};
}

/// Every gathering of a process has a name of its own; all ranks gather in the same order.
std::string next_key() {
  static std::atomic<int> num_gatherings{0};
  return fmt::format("epistle.{}", num_gatherings.fetch_add(1, std::memory_order_relaxed));
}

std::vector<std::string> gather_texts(const PmixRank& rank, const std::string& own) {
  const std::string key = next_key();
  std::string copy = own;
  pmix_value_t value{};
  value.type = PMIX_BYTE_OBJECT;
  value.data.bo.bytes = copy.data();
  value.data.bo.size = copy.size();
  require_pmix(pmix().put(PMIX_GLOBAL, key.c_str(), &value), "PMIx_Put");
  require_pmix(pmix().commit(), "PMIx_Commit");
  pass_fence(rank);
  std::vector<std::string> texts;
  texts.reserve(static_cast<std::size_t>(rank.num_ranks));
  for (int peer = 0; peer < rank.num_ranks; ++peer) texts.push_back(text_of_rank(peer, key));
  return texts;
}

}  // namespace

std::string lack_of_pmix() {
  try {
    (void)pmix();
    return {};
  } catch (const Error& error) {
    return std::string(error.message());
  }
}

bool has_pmix_server(int rank) noexcept {
  const char* const name_space = std::getenv("PMIX_NAMESPACE");
  const char* const number = std::getenv("PMIX_RANK");
  return name_space != nullptr && *name_space != '\0' && number != nullptr && std::to_string(rank) == number;
}

GatherTexts gather_by_pmix(const PmixRank& rank) {
  const pmix_proc_t& self = pmix_client().self();
  if (self.rank != static_cast<pmix_rank_t>(rank.rank)) {
    throw Error(
        ErrorCode::kShapeMismatch,
        fmt::format("the launcher's PMIx server knows this process as rank {} of {}, its variables say rank {}; "
                    "unset the variables of launchers that did not start this process",
                    self.rank, self.nspace, rank.rank),
        {.rank = rank.rank, .phase = Phase::kRendezvous});
  }
  return [rank](const std::string& own) { return gather_texts(rank, own); };
}

}  // namespace epistle
