// Memory of GPUs on links: registered where libfabric takes it, refused with the reason where not. GPUs are played by
// host memory and a libfabric that takes it for theirs (tests/fakes/fabric).
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <dlfcn.h>

#include <gtest/gtest.h>

#include "core/settings.hpp"
#include "fabric/fabric_link.hpp"
#include "hosts/host_ranks.hpp"

namespace epistle::testing {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kGpuPieceBytes = std::int64_t{4} << 20;
constexpr std::int64_t kBehindThePiece = 4096;
constexpr int kPlayedGpu = 3;

void demand(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

/// Before libfabric is loaded.
void load_fake_fabric(const char* how) {
  ::setenv("EPISTLE_FABRIC_LIBRARY", EPISTLE_FAKE_FABRIC, 1);
  ::setenv("EPISTLE_FAKE_HMEM", how, 1);
  reload_settings_for_testing();
}

int num_gpu_regions() {
  void* const library = ::dlopen(EPISTLE_FAKE_FABRIC, RTLD_NOW | RTLD_NOLOAD);
  demand(library != nullptr, "the fake is not loaded");
  const auto count = reinterpret_cast<int (*)()>(::dlsym(library, "epistle_fake_gpu_regions"));
  return count();
}

GpuSpan span_of(std::vector<std::byte>& memory) {
  return {.data = memory.data(), .num_bytes = static_cast<std::int64_t>(memory.size()), .gpu = kPlayedGpu};
}

std::vector<std::byte> pattern(int rank, int round) {
  std::vector<std::byte> bytes(kGpuPieceBytes);
  for (std::size_t idx = 0; idx < bytes.size(); ++idx) {
    bytes[idx] = static_cast<std::byte>(idx * 7 + (idx >> 10) + static_cast<std::size_t>(rank * 31 + round * 13));
  }
  return bytes;
}

struct Ends {
  GroupImpl& group;
  DomainLink& link;
  int peer;
};

void put_all(const Ends& ends, const std::vector<std::byte>& source, std::uint64_t num_signals) {
  ends.link.put(ends.peer, kBehindThePiece, source.data(), static_cast<std::int64_t>(source.size()));
  ends.link.signal(ends.peer);
  const auto deadline = Clock::now() + ends.group.timeout();
  while (ends.link.signals_from(ends.peer) < num_signals) demand(Clock::now() < deadline, "a signal did not come");
  while (!ends.link.try_flush()) demand(Clock::now() < deadline, "bytes were not delivered");
  ends.group.barrier();
}

FabricLinkOptions of_gpus(bool wants_local_keys) {
  return {
      .request = {.provider = "tcp", .address = "127.0.0.1", .gpu_memory = true, .stage_sources = wants_local_keys}};
}

class GpuMemoryOnLinks : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (const std::string lack = lack_of_fabric(); !lack.empty()) GTEST_SKIP() << lack;
  }
};

TEST_P(GpuMemoryOnLinks, IsWrittenByPeersAndMayMoveWhenItGrows) {
  const bool wants_local_keys = GetParam();
  ReportingChildren children(host_ranks(make_hosts_job(2, 1), [=](Group& group, ChildReport&) {
    load_fake_fabric("register");
    GroupImpl& impl = group.impl();
    const SymmetricRegion region = impl.create_region(kBehindThePiece);
    const auto link = make_fabric_link(impl, region, of_gpus(wants_local_keys));
    std::vector<std::byte> trial(64);
    demand(link->lack_of_gpu_memory(span_of(trial)).empty(), link->lack_of_gpu_memory(span_of(trial)));
    const int peer = 1 - group.rank();
    const Ends ends{impl, *link, peer};
    std::vector<std::byte> landing(kGpuPieceBytes);
    std::vector<std::byte> source = pattern(group.rank(), 0);
    const int num_before = num_gpu_regions();
    link->register_gpu(span_of(source));
    link->expose_gpu(kBehindThePiece, span_of(landing));
    link->expose_gpu(kBehindThePiece, span_of(landing));  // again, as where another section has grown
    demand(num_gpu_regions() == num_before + 2, "what is registered is memory of a GPU, once");
    put_all(ends, source, 1);
    demand(landing == pattern(peer, 0), "bytes of the first round");

    link->withdraw_gpu(landing.data());
    link->withdraw_gpu(source.data());
    std::vector<std::byte> moved(kGpuPieceBytes);
    source = pattern(group.rank(), 1);
    link->register_gpu(span_of(source));
    link->expose_gpu(kBehindThePiece, span_of(moved));
    put_all(ends, source, 2);
    demand(moved == pattern(peer, 1), "bytes of the second round");
    demand(landing == pattern(peer, 0), "what was withdrawn is left alone");
    impl.barrier();
  }));
  expect_all_well(children);
}

INSTANTIATE_TEST_SUITE_P(Sources, GpuMemoryOnLinks, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "NeedKeys" : "NeedNoKeys"; });

class LackOfGpuMemory : public GpuMemoryOnLinks {};

TEST_F(LackOfGpuMemory, IsSaidWhereLibfabricCannotRegisterIt) {
  ReportingChildren children(host_ranks(make_hosts_job(2, 1), [](Group& group, ChildReport&) {
    load_fake_fabric("refuse");
    const auto link = make_fabric_link(group.impl(), group.impl().create_region(kBehindThePiece), of_gpus(false));
    std::vector<std::byte> trial(64);
    const std::string lack = link->lack_of_gpu_memory(span_of(trial));
    demand(lack.find("fi_mr_regattr of GPU memory failed") != std::string::npos, lack);
    group.barrier();
  }));
  expect_all_well(children);
}

TEST_F(LackOfGpuMemory, IsSaidWhereTheProviderDoesNotOfferIt) {
  ReportingChildren children(host_ranks(make_hosts_job(2, 1), [](Group& group, ChildReport&) {
    FabricLinkOptions options = of_gpus(false);
    options.request.gpu_memory = false;
    const auto link = make_fabric_link(group.impl(), group.impl().create_region(kBehindThePiece), options);
    std::vector<std::byte> trial(64);
    const std::string lack = link->lack_of_gpu_memory(span_of(trial));
    demand(lack.find("does not register it (FI_HMEM)") != std::string::npos, lack);
    group.barrier();
  }));
  expect_all_well(children);
}

}  // namespace
}  // namespace epistle::testing
