// Which way GPU memory is shared, from what all ranks know of their devices.
#include "gpu/heap/heap_kind.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

namespace epistle::cuda {
namespace {

/// Ranks with GPUs of their own that can do everything: `hosts` and `domains` by rank.
std::vector<HeapFacts> facts_of(const std::vector<int>& hosts, const std::vector<int>& domains) {
  std::vector<HeapFacts> facts(hosts.size());
  for (std::size_t rank = 0; rank < facts.size(); ++rank) {
    facts[rank].rank = static_cast<int>(rank);
    facts[rank].host = hosts[rank];
    facts[rank].domain = domains[rank];
    facts[rank].uuid[0] = static_cast<char>(rank);
    facts[rank].virtual_memory = facts[rank].posix_fd = facts[rank].fabric = true;
  }
  return facts;
}

std::string refusal_of(const std::vector<HeapFacts>& facts) {
  try {
    (void)choose_heap_kind(facts, GroupKind::kProcesses, 0);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    return std::string(error.message());
  }
  ADD_FAILURE() << "it was not refused";
  return {};
}

TEST(HeapKind, IsDescriptorsWhereDomainsKeepToHosts) {
  EXPECT_EQ(choose_heap_kind(facts_of({0, 0, 1, 1}, {0, 0, 1, 1}), GroupKind::kProcesses, 0), HeapKind::kVmmFd);
  EXPECT_EQ(choose_heap_kind(facts_of({0, 0, 0, 0}, {0, 0, 1, 1}), GroupKind::kProcesses, 0), HeapKind::kVmmFd);
}

TEST(HeapKind, IsFabricHandlesWhereADomainIsOnSeveralHosts) {
  EXPECT_EQ(choose_heap_kind(facts_of({0, 0, 1, 1}, {0, 0, 0, 0}), GroupKind::kProcesses, 0), HeapKind::kVmmFabric);
  EXPECT_EQ(choose_heap_kind(facts_of({0, 1, 2, 3}, {0, 0, 1, 1}), GroupKind::kProcesses, 0), HeapKind::kVmmFabric);
}

TEST(HeapKind, OfADomainOverHostsWithoutFabricHandlesIsARefusalThatNamesTheDevice) {
  std::vector<HeapFacts> facts = facts_of({0, 0, 1, 1}, {0, 0, 0, 0});
  facts[3].fabric = false;
  facts[3].device = 1;
  const std::string text = refusal_of(facts);
  for (const char* const part : {"ranks 1 and 2 are on two hosts", "device 1 of rank 3", "exported as a fabric handle",
                                 "EPISTLE_NVLINK_FABRIC=none"}) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  }
}

TEST(HeapKind, OfADomainOverHostsRefusesTheOtherWays) {
  for (const CudaHeapChoice choice : {CudaHeapChoice::kFd, CudaHeapChoice::kIpc}) {
    std::vector<HeapFacts> facts = facts_of({0, 1}, {0, 0});
    facts[1].choice = choice;
    EXPECT_NE(refusal_of(facts).find("EPISTLE_CUDA_HEAP is " + std::string(to_string(choice))), std::string::npos);
  }
}

TEST(HeapKind, OfProcessesThatShareAGpuIsARefusal) {
  std::vector<HeapFacts> facts = facts_of({0, 0, 0}, {0, 0, 0});
  facts[2].uuid = facts[1].uuid;
  EXPECT_NE(refusal_of(facts).find("ranks 1 and 2 have the same GPU"), std::string::npos);
}

TEST(HeapKind, AsksNothingOfRanksThatAreMaskedOut) {
  std::vector<HeapFacts> facts = facts_of({0, 0, 0}, {0, 0, 0});
  facts[1] = facts[0];  // as gather() gives them
  EXPECT_EQ(choose_heap_kind(facts, GroupKind::kProcesses, 0), HeapKind::kVmmFd);
  facts[0] = facts[1] = facts[2];
  EXPECT_EQ(choose_heap_kind(facts, GroupKind::kProcesses, 2), HeapKind::kVmmFd);
}

}  // namespace
}  // namespace epistle::cuda
