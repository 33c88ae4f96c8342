// One rank of a group over hosts, as scripts/network-check starts it in a network namespace, with the variables that
// torchrun sets. What it finds is one line of JSON.
//
//   network_rank steps N        N barriers and gatherings, every byte compared
//   network_rank paced N        the same, a millisecond apart
//   network_rank endless        barriers until one fails; the failure is the result
//   network_rank link MIB       puts MIB MiB to every rank of other hosts and checks what came; the rate
//   network_rank bytes TOKENS   what hybrid puts on the network for so many tokens per rank, against what it should
//   network_rank timeline TOKENS   when the parts of a dispatch of hybrid were done; scripts/hybrid-timeline draws it
//   network_rank soak N         N random round trips of hybrid and alltoall, every bit compared
//   network_rank masks N        the same until a rank is lost, then N without those that are
//   network_rank form           nothing but to form the group: how long that took, and the memory of a rank
//   network_rank rate MIB       rank 0 sends MIB MiB to the first rank of another host over plain TCP; the rate
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "epistle/group.hpp"

#include "fabric/fabric_link.hpp"
#include "group/group_impl.hpp"
#include "group/net/address.hpp"
#include "group/net/stream.hpp"
#include "network/network_modes.hpp"

namespace epistle::testing {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kMib = std::int64_t{1} << 20;
constexpr std::int64_t kChunkBytes = std::int64_t{256} << 10;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void require(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(what);
}

std::byte pattern(int source, std::int64_t idx) { return static_cast<std::byte>(source * 37 + idx * 11 + (idx >> 9)); }

void run_steps(Group& group, std::int64_t num_steps, std::chrono::milliseconds pause) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(group.size()));
  for (std::int64_t step = 0; step < num_steps; ++step) {
    group.barrier();
    const std::int64_t own = step * 1000 + group.rank();
    group.all_gather(&own, sizeof(own), all.data());
    for (int rank = 0; rank < group.size(); ++rank) {
      require(all[static_cast<std::size_t>(rank)] == step * 1000 + rank, "a gathered number differs");
    }
    std::this_thread::sleep_for(pause);
  }
}

void run_endless(Group& group) {
  std::cout << "ready" << std::endl;
  for (;;) group.barrier();
}

/// Every rank puts as much to every rank of other hosts, in chunks, each with a signal behind it.
Json run_link(Group& group, std::int64_t num_bytes) {
  GroupImpl& impl = group.impl();
  const std::int64_t piece_bytes = num_bytes * group.size();
  const SymmetricRegion region = impl.create_region(piece_bytes);
  region.commit(0, piece_bytes);
  const auto link = make_fabric_link(impl, region);
  link->expose(0, piece_bytes);
  std::vector<std::byte> source(static_cast<std::size_t>(num_bytes));
  for (std::int64_t idx = 0; idx < num_bytes; ++idx) source[static_cast<std::size_t>(idx)] = pattern(group.rank(), idx);
  const Clock::time_point give_up = Clock::now() + group.timeout();
  std::vector<int> peers;
  for (int rank = 0; rank < group.size(); ++rank) {
    if (group.host_of(rank) != group.host_of(group.rank())) peers.push_back(rank);
  }
  // Connections are made by the first byte.
  for (const int peer : peers) link->put(peer, group.rank() * num_bytes, source.data(), 1);
  while (!link->try_flush()) require(Clock::now() < give_up, "the first byte did not arrive");
  const std::int64_t before_bytes = link->sent_bytes();
  group.barrier();
  const Clock::time_point start = Clock::now();
  std::uint64_t num_chunks = 0;
  for (std::int64_t done = 0; done < num_bytes; done += kChunkBytes, ++num_chunks) {
    for (const int peer : peers) {
      link->put(peer, group.rank() * num_bytes + done, source.data() + done, std::min(kChunkBytes, num_bytes - done));
      link->signal(peer);
    }
  }
  const auto is_over = [&] {
    const bool all_here =
        std::all_of(peers.begin(), peers.end(), [&](int peer) { return link->signals_from(peer) == num_chunks; });
    return link->try_flush() && all_here;
  };
  while (!is_over()) {
    impl.check_usable();
    require(Clock::now() - start < group.timeout(), "bytes did not arrive");
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  group.barrier();
  const double took_s = seconds_since(start);
  for (const int peer : peers) {
    const std::byte* const found = region.own() + peer * num_bytes;
    for (std::int64_t idx = 0; idx < num_bytes; ++idx) require(found[idx] == pattern(peer, idx), "a byte differs");
  }
  group.barrier();
  return {{"transport", link->describe()},
          {"sent_bytes", link->sent_bytes()},
          {"bytes_per_s", static_cast<double>(link->sent_bytes() - before_bytes) / took_s}};
}

/// What the way between the first two hosts carries in one direction, for comparison: one stream of plain TCP.
Json run_rate(Group& group, std::int64_t num_bytes) {
  int receiver = 0;
  while (receiver + 1 < group.size() && group.host_of(receiver) == 0) ++receiver;
  std::string address(64, '\0');
  UniqueFd listener;
  if (group.rank() == receiver) {
    listener = listen_at(resolve({group.impl().host_address(), 1}).with_port(0));
    const std::string text = own_address(listener.get()).to_text();
    std::copy(text.begin(), text.end(), address.begin());
  }
  std::string all(address.size() * static_cast<std::size_t>(group.size()), '\0');
  group.all_gather(address.data(), address.size(), all.data());
  const Deadline deadline = Clock::now() + group.timeout();
  double bytes_per_s = 0;
  if (group.rank() == 0) {
    const std::string text = all.c_str() + address.size() * static_cast<std::size_t>(receiver);
    const UniqueFd socket = connect_to(resolve(parse_host_and_port(text)), deadline);
    const std::string chunk(static_cast<std::size_t>(kMib), 'x');
    const Clock::time_point start = Clock::now();
    for (std::int64_t sent = 0; sent < num_bytes; sent += kMib) {
      require(send_bytes(socket.get(), chunk, deadline) == ChannelStatus::kOk, "plain TCP does not send");
    }
    std::string answer;
    require(receive_bytes(socket.get(), 1, answer, deadline) == ChannelStatus::kOk, "plain TCP does not answer");
    bytes_per_s = static_cast<double>(num_bytes) / seconds_since(start);
  } else if (group.rank() == receiver) {
    UniqueFd socket;
    while (!(socket = accept_now(listener.get())).valid()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::string chunk;
    for (std::int64_t received = 0; received < num_bytes; received += kMib) {
      require(receive_bytes(socket.get(), static_cast<std::size_t>(kMib), chunk, deadline) == ChannelStatus::kOk,
              "plain TCP does not receive");
    }
    (void)send_bytes(socket.get(), "!", deadline);
  }
  group.barrier();
  return {{"bytes_per_s", bytes_per_s}};
}

Json run_mode(Group& group, const std::string& mode, std::int64_t number) {
  if (mode == "steps") run_steps(group, number, std::chrono::milliseconds(0));
  if (mode == "paced") run_steps(group, number, std::chrono::milliseconds(1));
  if (mode == "endless") run_endless(group);
  if (mode == "link") return run_link(group, number * kMib);
  if (mode == "rate") return run_rate(group, number * kMib);
  if (mode == "bytes") return count_bytes(group, number);
  if (mode == "timeline") return record_timeline(group, number);
  if (mode == "soak") return soak(group, number);
  if (mode == "masks") return go_on_masked(group, number);
  if (mode == "form") {
    group.barrier();
    return memory_of_rank();
  }
  return Json::object();
}

int run(const std::string& mode, std::int64_t number) {
  const Clock::time_point start = Clock::now();
  Json result = {{"mode", mode}};
  int exit_code = 0;
  try {
    const LaunchInfo info = read_launch_info();
    result["rank"] = info.rank;
    Group group = join_process_group(info);
    result["num_hosts"] = group.num_hosts();
    result["joined_s"] = seconds_since(start);
    result.update(run_mode(group, mode, number));
    result["ok"] = true;
  } catch (const Error& error) {
    result["ok"] = false;
    result["code"] = std::string(to_string(error.code()));
    result["peer_rank"] = error.context().peer_rank;
    result["message"] = error.what();
    exit_code = 1;
  } catch (const std::exception& error) {
    result["ok"] = false;
    result["message"] = error.what();
    exit_code = 1;
  }
  result["took_s"] = seconds_since(start);
  std::cout << result.dump() << std::endl;
  return exit_code;
}

}  // namespace
}  // namespace epistle::testing

int main(int argc, char** argv) {
  const std::vector<std::string> modes = {"steps", "paced", "endless", "link",     "rate",
                                          "bytes", "soak",  "form",    "timeline", "masks"};
  const std::string mode = argc > 1 ? argv[1] : "";
  if (std::find(modes.begin(), modes.end(), mode) == modes.end()) {
    std::cerr
        << "usage: network_rank steps|paced|link|rate|bytes|soak|timeline|masks N, or network_rank endless|form\n";
    return 2;
  }
  return epistle::testing::run(mode, argc > 2 ? std::atoll(argv[2]) : 0);
}
