#include "group/net/host_table.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <utility>

#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "epistle/error.hpp"

#include "core/complaint.hpp"
#include "core/random_bytes.hpp"
#include "core/settings.hpp"
#include "core/whole_file.hpp"
#include "group/limits.hpp"
#include "group/net/stream.hpp"
#include "group/net/texts.hpp"
#include "group/rendezvous_packet.hpp"
#include "topology/nvml.hpp"

namespace epistle {
namespace {

/// What a rank tells of itself.
struct HostCard {
  std::string version = std::to_string(kProtocolVersion);
  std::string key;
  std::string reach;  ///< ranks of one host can meet where it is the same
  std::string name;
  std::string job;
  std::string secret;

  [[nodiscard]] std::string pack() const { return pack_texts({version, key, reach, name, job, secret}); }
  [[nodiscard]] static std::optional<HostCard> unpack(const std::string& text) {
    constexpr std::size_t kNumFields = 6;
    auto fields = unpack_texts(text, kNumFields);
    if (!fields) return std::nullopt;
    std::vector<std::string>& f = *fields;
    return HostCard{std::move(f[0]), std::move(f[1]), std::move(f[2]),
                    std::move(f[3]), std::move(f[4]), std::move(f[5])};
  }
};

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

/// The boot of the kernel, and the network namespace, in which ranks of a host meet.
std::string own_reach() {
  std::string reach;
  const Complaint unknown = attempt([&] { reach = read_whole_file("/proc/sys/kernel/random/boot_id"); });
  if (unknown) reach = host_name();
  struct stat status {};
  if (::stat("/proc/self/ns/net", &status) == 0) reach += fmt::format(" {}", status.st_ino);
  return reach;
}

HostCard card_of(const HostMeeting& meeting) {
  constexpr std::size_t kNameBytes = 16;
  constexpr std::size_t kSecretBytes = 32;
  HostCard card{.key = own_host_key(), .reach = own_reach(), .name = host_name(), .job = {}, .secret = {}};
  if (meeting.rank == 0 && meeting.job.empty()) card.job = "gathered:" + random_hex(kNameBytes);
  if (meeting.rank == 0 && meeting.secret.empty()) card.secret = random_hex(kSecretBytes);
  return card;
}

/// A host that ranks of several ones are said to be on: they would wait for each other in vain.
[[noreturn]] void throw_no_host(const HostEntry& host, const HostCard& card, int rank, int own_rank) {
  throw Error(
      ErrorCode::kInvalidArgument,
      fmt::format("EPISTLE_HOST_ID is '{}' on rank {} ({}) and on rank {} ({}), but these are two hosts, or two "
                  "network namespaces of one; give every host an id of its own, or unset it",
                  card.key, host.ranks.front(), host.name, rank, card.name),
      {.rank = own_rank, .peer_rank = rank, .phase = Phase::kRendezvous});
}

HostTable table_of(const std::vector<std::string>& texts, const HostMeeting& meeting) {
  HostTable table{.hosts = {}, .host_of = {}, .job = meeting.job, .secret = meeting.secret};
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    const std::optional<HostCard> card = HostCard::unpack(texts[rank]);
    if (!card || card->version != std::to_string(kProtocolVersion)) {
      throw Error(ErrorCode::kShapeMismatch,
                  fmt::format("rank {} came with protocol {}; expected {}. Start all ranks with the same program", rank,
                              card ? card->version : "none", kProtocolVersion),
                  {.rank = meeting.rank, .peer_rank = static_cast<int>(rank), .phase = Phase::kRendezvous});
    }
    if (rank == 0 && meeting.job.empty()) table.job = card->job;
    if (rank == 0 && meeting.secret.empty()) table.secret = card->secret;
    const auto same = std::find_if(table.hosts.begin(), table.hosts.end(),
                                   [&](const HostEntry& host) { return host.key == card->key; });
    const auto host = std::distance(table.hosts.begin(), same);
    if (same == table.hosts.end())
      table.hosts.push_back(
          {.name = card->name, .key = card->key, .reach = card->reach, .ranks = {}, .address = {}, .fabric = {}});
    else if (same->reach != card->reach)
      throw_no_host(*same, *card, static_cast<int>(rank), meeting.rank);
    table.hosts[static_cast<std::size_t>(host)].ranks.push_back(static_cast<int>(rank));
    table.host_of.push_back(static_cast<int>(host));
  }
  for (const HostEntry& host : table.hosts) check_num_ranks(static_cast<int>(host.ranks.size()));
  return table;
}

/// Where the leader of a host listens to the others: never everywhere.
SocketAddress own_way(const Gathering& gathering) {
  const std::string& interface = settings().network_interface();
  if (!interface.empty()) return address_of_interface(interface);
  if (const auto way = gathering.own_address()) return way->with_port(0);
  constexpr std::uint16_t kAnyPort = 1;
  const SocketAddress address = resolve({host_name(), kAnyPort}).with_port(0);
  if (!address.is_loopback()) return address;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("the ranks are on several hosts, and the name of this one, '{}', stands for {}, where the "
                          "others cannot reach it; name the interface with EPISTLE_INTERFACE",
                          host_name(), address.host_text()),
              {.phase = Phase::kRendezvous});
}

/// The NVLink fabric that this host is in with others; empty where there is none.
std::string own_fabric() {
  const std::string& setting = settings().nvlink_fabric();
  if (setting == "none") return {};
  return setting == "auto" ? probe_nvlink_fabric().fabric : setting;
}

/// What a rank that leads tells of its host: where it listens, or why it does not.
struct LeaderCard {
  std::string address;
  std::string fabric;

  [[nodiscard]] std::string pack(const Complaint& complaint) const {
    if (!complaint) return pack_texts({address, fabric, "", ""});
    return pack_texts({"", "", std::to_string(static_cast<int>(complaint->code())), std::string(complaint->message())});
  }
};

void take_leaders(const std::vector<std::string>& texts, HostTable& table, int own_rank) {
  for (HostEntry& host : table.hosts) {
    const int leader = host.ranks.front();
    const auto fields = unpack_texts(texts[static_cast<std::size_t>(leader)], 4);
    const Error::Context context{.rank = own_rank, .peer_rank = leader, .phase = Phase::kRendezvous};
    if (!fields) throw Error(ErrorCode::kSystem, fmt::format("rank {} did not say where it listens", leader), context);
    host.address = (*fields)[0];
    host.fabric = (*fields)[1];
    const std::string& code = (*fields)[2];
    if (code.empty()) continue;
    int number = static_cast<int>(ErrorCode::kSystem);
    (void)std::from_chars(code.data(), code.data() + code.size(), number);
    throw Error(static_cast<ErrorCode>(number), fmt::format("rank {} cannot listen: {}", leader, (*fields)[3]),
                context);
  }
}

}  // namespace

int HostTable::leader_of(int rank) const noexcept {
  return hosts[static_cast<std::size_t>(host_of[static_cast<std::size_t>(rank)])].ranks.front();
}

int HostTable::gpu_reach_of(int rank) const noexcept {
  const int host = host_of[static_cast<std::size_t>(rank)];
  const std::string& fabric = hosts[static_cast<std::size_t>(host)].fabric;
  if (fabric.empty()) return host;
  const auto first =
      std::find_if(hosts.begin(), hosts.end(), [&](const HostEntry& other) { return other.fabric == fabric; });
  return static_cast<int>(first - hosts.begin());
}

HostRanks HostTable::ranks_beside(int rank) const {
  const std::vector<int>& here = hosts[static_cast<std::size_t>(host_of[static_cast<std::size_t>(rank)])].ranks;
  const int num_ranks = static_cast<int>(host_of.size());
  if (num_hosts() == 1) return all_ranks_here(num_ranks);
  auto place = std::make_shared<std::vector<int>>(host_of.size(), -1);
  for (std::size_t idx = 0; idx < here.size(); ++idx) {
    (*place)[static_cast<std::size_t>(here[idx])] = static_cast<int>(idx);
  }
  return {.num_ranks = num_ranks, .here = here, .place = std::move(place), .own = rank};
}

std::string HostTable::describe() const {
  constexpr std::size_t kMaxHosts = 8;
  std::string text;
  for (std::size_t idx = 0; idx < hosts.size() && idx < kMaxHosts; ++idx) {
    const HostEntry& host = hosts[idx];
    text += fmt::format("{}{}{} on {} ({})", idx == 0 ? "" : ", ", host.ranks.size(), idx == 0 ? " ranks" : "",
                        host.name, fmt::join(host.ranks, ", "));
  }
  if (hosts.size() > kMaxHosts) text += fmt::format(", and {} hosts more", hosts.size() - kMaxHosts);
  return text;
}

std::string own_host_key() { return settings().host_id().empty() ? own_reach() : settings().host_id(); }

MetHosts meet_hosts(Gathering& gathering, const HostMeeting& meeting) {
  MetHosts met{.table = table_of(gathering.all_gather(card_of(meeting).pack()), meeting), .listener = {}};
  if (met.table.num_hosts() == 1) return met;
  LeaderCard card;
  Complaint complaint;
  if (met.table.leader_of(meeting.rank) == meeting.rank) {
    complaint = attempt([&] {
      met.listener = listen_at(own_way(gathering));
      card.address = own_address(met.listener.get()).to_text();
      card.fabric = own_fabric();
    });
  }
  take_leaders(gathering.all_gather(card.pack(complaint)), met.table, meeting.rank);
  return met;
}

}  // namespace epistle
