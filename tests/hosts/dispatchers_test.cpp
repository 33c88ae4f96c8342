// Dispatchers that reach into the memory of every rank say so where they cannot.
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "hosts/host_ranks.hpp"

namespace epistle::testing {
namespace {

TEST(DispatchersOverHosts, AreRefusedOnAllRanksAndTheGroupGoesOn) {
  ReportingChildren children(host_ranks(make_hosts_job(2, 1), [](Group& group, ChildReport&) {
    for (const DispatcherInfo* info : dispatchers()) {
      if (info->device() != Device::kHost) continue;
      try {
        const Dispatcher dispatcher(group, info->name(), {.hidden = 64, .num_experts = 8, .top_k = 2, .max_tokens = 4});
        throw std::runtime_error(std::string(info->name()) + " was made");
      } catch (const Error& error) {
        const std::string text = error.what();
        if (error.code() != ErrorCode::kUnsupported || text.find("on 2 hosts") == std::string::npos) throw;
      }
    }
    group.barrier();
  }));
  expect_all_well(children);
}

}  // namespace
}  // namespace epistle::testing
