// Processes of the same user that are no ranks: they come to the meeting point first, say nothing or nonsense, or
// pretend to be a rank or the meeting point itself. Joining succeeds or ends in time with a typed error; it never hangs
// or dies.
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <ostream>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "multiprocess/reporting_children.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"
#include "support/shared_array.hpp"

namespace epistle::testing {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kStrangerRanks = 3;
constexpr milliseconds kStrangerTimeout{2000};
constexpr milliseconds kStrangerSlack{3000};
constexpr int kSocketType = SOCK_SEQPACKET | SOCK_CLOEXEC;

// ---- Where ranks meet -----------------------------------------------------------------------------------------------

std::set<std::string> sockets_of(pid_t pid) {
  std::set<std::string> inodes;
  std::error_code ignored;  // the process may end meanwhile
  for (const auto& entry : std::filesystem::directory_iterator(fmt::format("/proc/{}/fd", pid), ignored)) {
    const std::string target = std::filesystem::read_symlink(entry.path(), ignored).string();
    if (target.starts_with("socket:[")) inodes.insert(target.substr(8, target.size() - 9));
  }
  return inodes;
}

/// The abstract address that a socket of `pid` is bound to, once there is one: as the kernel lists it, no part of it is
/// guessed. Empty when none comes.
std::string wait_for_address_of(pid_t pid) {
  const auto deadline = Clock::now() + kStrangerTimeout;
  while (Clock::now() < deadline) {
    const std::set<std::string> inodes = sockets_of(pid);
    std::ifstream stream("/proc/net/unix");
    for (std::string line; std::getline(stream, line);) {
      std::istringstream fields(line);
      std::array<std::string, 8> field;
      for (std::string& value : field) fields >> value;
      if (inodes.contains(field[6]) && field[7].starts_with("@")) return field[7].substr(1);
    }
    std::this_thread::sleep_for(milliseconds(1));
  }
  return {};
}

class Address {
 public:
  explicit Address(const std::string& name) {
    address_.sun_family = AF_UNIX;
    std::memcpy(address_.sun_path + 1, name.data(), name.size());
    size_ = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  }
  [[nodiscard]] int connect(int flags = 0) const {
    const int fd = ::socket(AF_UNIX, kSocketType | flags, 0);
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&address_), size_) == 0) return fd;
    ::close(fd);
    return -1;
  }
  [[nodiscard]] int listen(int backlog) const {
    const int fd = ::socket(AF_UNIX, kSocketType, 0);
    if (::bind(fd, reinterpret_cast<const sockaddr*>(&address_), size_) != 0 || ::listen(fd, backlog) != 0) return -1;
    return fd;
  }

 private:
  sockaddr_un address_{};
  socklen_t size_ = 0;
};

LaunchInfo launch(const std::string& job, int rank) { return {.rank = rank, .num_ranks = kStrangerRanks, .job = job}; }

/// A process that does `body` and then waits to be killed.
class Stranger {
 public:
  explicit Stranger(const std::function<void()>& body) : is_done_(0) {
    int ends[2] = {};
    if (::pipe(ends) != 0) throw std::runtime_error("pipe failed");
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::close(ends[0]);
      body();
      (void)!::write(ends[1], "x", 1);
      for (;;) ::pause();
    }
    ::close(ends[1]);
    is_done_ = ends[0];
  }
  ~Stranger() {
    ::close(is_done_);
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Stranger(const Stranger&) = delete;
  Stranger& operator=(const Stranger&) = delete;

  /// False where it died instead.
  [[nodiscard]] bool wait_until_done() const {
    char byte = 0;
    return ::read(is_done_, &byte, 1) == 1;
  }

 private:
  pid_t pid_ = -1;
  int is_done_;
};

void send_bytes(int fd, const std::string& bytes, const std::vector<int>& descriptors = {}) {
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  std::vector<std::byte> control(CMSG_SPACE(sizeof(int) * descriptors.size()));
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (!descriptors.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* const attached = CMSG_FIRSTHDR(&header);
    attached->cmsg_level = SOL_SOCKET;
    attached->cmsg_type = SCM_RIGHTS;
    attached->cmsg_len = CMSG_LEN(sizeof(int) * descriptors.size());
    std::memcpy(CMSG_DATA(attached), descriptors.data(), sizeof(int) * descriptors.size());
  }
  (void)::sendmsg(fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
}

std::string random_bytes(std::uint64_t seed, std::size_t size) {
  std::string bytes(size, '\0');
  for (std::size_t idx = 0; idx < size; ++idx) bytes[idx] = static_cast<char>(mix(seed, idx));
  return bytes;
}

/// Of a rank that meets this test in place of rank 0: what it says first.
std::string first_words_of_rank(const std::string& address, const std::string& job, int rank) {
  const int listener = Address(address).listen(1);
  if (listener < 0) return {};
  ReportingChildren child(
      {[&](ChildReport&) { (void)join_process_group(launch(job, rank), {.timeout = kStrangerTimeout}); }});
  const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  std::array<char, 4096> words{};
  const ssize_t size = ::recv(fd, words.data(), words.size(), 0);
  ::close(fd);
  ::close(listener);
  (void)child.wait(0);
  return {words.data(), static_cast<std::size_t>(std::max<ssize_t>(size, 0))};
}

/// The address of a job, from a rank 0 that opens it and ends.
std::string learn_address(const std::string& job) {
  SharedArray<pid_t> root(1);
  ReportingChildren child({[&](ChildReport&) {
    root[0] = ::getpid();
    (void)join_process_group(launch(job, 0), {.timeout = kStrangerTimeout});
  }});
  while (root[0] == 0) std::this_thread::sleep_for(milliseconds(1));
  std::string address = wait_for_address_of(root[0]);
  child.send(0, SIGKILL);
  (void)child.wait(0);
  return address;
}

// ---- Strangers at the door of rank 0 --------------------------------------------------------------------------------

struct Visit {
  std::string name;
  bool must_succeed;  ///< it takes nobody's place, so the ranks meet all the same
  std::function<void(const Address& address, const std::string& words_of_rank_1)> body;
  friend std::ostream& operator<<(std::ostream& stream, const Visit& visit) { return stream << visit.name; }
};

std::vector<Visit> visits() {
  const auto memfd = [](off_t size) {
    const int fd = ::memfd_create("stranger", MFD_CLOEXEC);
    if (::ftruncate(fd, size) != 0) ::_exit(1);
    return fd;
  };
  std::vector<Visit> all;
  all.push_back({"Silent", true, [](const Address& address, const std::string&) {
                   for (int idx = 0; idx < 3; ++idx) (void)address.connect();
                 }});
  all.push_back({"ClosesAtOnce", true, [](const Address& address, const std::string&) {
                   for (int idx = 0; idx < 20; ++idx) ::close(address.connect());
                 }});
  for (const std::size_t size :
       {std::size_t{1}, std::size_t{4}, std::size_t{16}, std::size_t{100}, std::size_t{60'000}}) {
    all.push_back({fmt::format("Garbage{}", size), true, [size](const Address& address, const std::string&) {
                     send_bytes(address.connect(), random_bytes(size, size));
                   }});
  }
  all.push_back({"EmptyMessages", true, [](const Address& address, const std::string&) {
                   const int fd = address.connect();
                   for (int idx = 0; idx < 5; ++idx) send_bytes(fd, "");
                 }});
  all.push_back({"GarbageThatNeverEnds", true, [](const Address& address, const std::string&) {
                   const int fd = address.connect();
                   for (std::uint64_t idx = 0; idx < 500; ++idx) send_bytes(fd, random_bytes(idx, 16));
                 }});
  all.push_back({"Descriptors", true, [memfd](const Address& address, const std::string&) {
                   const int fd = address.connect();
                   send_bytes(fd, random_bytes(1, 16), std::vector<int>(200, memfd(0)));
                   send_bytes(fd, random_bytes(2, 16), {memfd(0), memfd(1 << 20)});
                 }});
  all.push_back({"HalfOfAGreeting", true, [](const Address& address, const std::string& words) {
                   send_bytes(address.connect(), words.substr(0, words.size() / 2));
                 }});
  all.push_back({"GreetingWithATail", true, [](const Address& address, const std::string& words) {
                   send_bytes(address.connect(), words + random_bytes(3, 16));
                 }});
  all.push_back({"PretendsToBeRank1", false,
                 [](const Address& address, const std::string& words) { send_bytes(address.connect(), words); }});
  all.push_back({"PretendsAndLeaves", false, [](const Address& address, const std::string& words) {
                   const int fd = address.connect();
                   send_bytes(fd, words);
                   ::close(fd);
                 }});
  all.push_back({"PretendsAndSendsMemory", false, [memfd](const Address& address, const std::string& words) {
                   const int fd = address.connect();
                   send_bytes(fd, words, {memfd(0)});
                   for (const std::size_t size :
                        {std::size_t{4}, std::size_t{8}, std::size_t{12}, std::size_t{16}, std::size_t{64}}) {
                     for (int idx = 0; idx < 4; ++idx) send_bytes(fd, random_bytes(size, size), {memfd(0)});
                     for (int idx = 0; idx < 4; ++idx) send_bytes(fd, std::string(size, '\0'), {memfd(0)});
                   }
                 }});
  all.push_back({"PretendsAndSendsGreetingsAgain", false, [](const Address& address, const std::string& words) {
                   const int fd = address.connect();
                   for (int idx = 0; idx < 50; ++idx) send_bytes(fd, words);
                 }});
  // Any word of the greeting may be a rank, a size or a version: each as a hostile number.
  all.push_back({"GreetingsWithHostileNumbers", false, [](const Address& address, const std::string& words) {
                   for (std::size_t offset = 0; offset + 4 <= words.size(); offset += 4) {
                     for (const std::uint32_t value : {0U, 0x7fffffffU, 0x80000000U, 0xffffffffU}) {
                       std::string changed = words;
                       std::memcpy(changed.data() + offset, &value, sizeof(value));
                       send_bytes(address.connect(SOCK_NONBLOCK), changed);
                     }
                   }
                 }});
  all.push_back({"SixHundredConnections", false, [](const Address& address, const std::string&) {
                   rlimit limit{};
                   ::getrlimit(RLIMIT_NOFILE, &limit);
                   limit.rlim_cur = limit.rlim_max;
                   ::setrlimit(RLIMIT_NOFILE, &limit);
                   const auto deadline = Clock::now() + milliseconds(600);
                   for (int num_open = 0; num_open < 600 && Clock::now() < deadline;) {
                     if (address.connect(SOCK_NONBLOCK) >= 0) ++num_open;
                   }
                 }});
  return all;
}

/// Ranks that join and make a verified round trip; whoever is not among `children` waits for his start.
class Ranks {
 public:
  explicit Ranks(const std::string& job) : job_(job) {
    scenario_.config = {.hidden = 64, .num_experts = 6, .top_k = 2, .max_tokens = 8};
    scenario_.tokens_per_rank.assign(kStrangerRanks, 4);
  }
  [[nodiscard]] ReportingChildren::Body body(
      int rank, const std::function<void()>& before = [] {}) const {
    return [this, rank, before](ChildReport& report) {
      before();
      const auto start = Clock::now();
      const Outcome outcome = outcome_of([&] {
        Group group = join_process_group(launch(job_, rank), {.timeout = kStrangerTimeout});
        Subject subject(group, "direct", scenario_.config);
        if (const Mismatch mismatch = round_trip(subject, Round(scenario_, 0))) {
          throw Error(ErrorCode::kVerificationFailed, *mismatch);
        }
        group.barrier();
      });
      report.progress = static_cast<int>(std::chrono::duration_cast<milliseconds>(Clock::now() - start).count());
      if (outcome) throw Error(*outcome);
    };
  }

 private:
  std::string job_;
  Scenario scenario_;
};

/// No rank hangs, dies or gets a wrong result.
void expect_in_time(ReportingChildren& children, bool must_succeed) {
  for (std::size_t rank = 0; rank < children.size(); ++rank) {
    const int status = children.wait(rank, kStrangerTimeout * 2 + kStrangerSlack * 2);
    ASSERT_NE(status, -1) << "rank " << rank << " hangs";
    ASSERT_EQ(status, 0) << "rank " << rank << " died: signal " << WTERMSIG(status);
    const ChildReport& report = children.report(rank);
    // A stranger that takes nobody's place does not keep the ranks waiting for their whole timeout either.
    EXPECT_LE(report.progress, (must_succeed ? kStrangerTimeout / 2 : kStrangerTimeout + kStrangerSlack).count())
        << "rank " << rank << ": " << report.message;
    EXPECT_FALSE(must_succeed && report.threw) << "rank " << rank << ": " << report.message;
    EXPECT_FALSE(report.threw && report.code == ErrorCode::kVerificationFailed) << report.message;
    EXPECT_FALSE(report.has_shared_memory);
  }
}

class Visitor : public ::testing::TestWithParam<Visit> {};

TEST_P(Visitor, RanksMeetOrSayWhyNot) {
  const std::string job = unique_job();
  const std::string known_address = learn_address(job);
  ASSERT_FALSE(known_address.empty()) << "rank 0 opens no abstract address";
  const std::string words = first_words_of_rank(known_address, job, 1);
  ASSERT_FALSE(words.empty()) << "rank 1 says nothing to rank 0";

  // The other ranks start when the visitor has done what it came for.
  SharedArray<pid_t> root(1);
  SharedArray<int> visited(1);
  const Ranks ranks(job);
  const auto after_visit = [&visited] {
    while (static_cast<volatile int&>(visited[0]) == 0) std::this_thread::sleep_for(milliseconds(1));
  };
  ReportingChildren children(
      {ranks.body(0, [&root] { root[0] = ::getpid(); }), ranks.body(1, after_visit), ranks.body(2, after_visit)});
  while (static_cast<volatile pid_t&>(root[0]) == 0) std::this_thread::sleep_for(milliseconds(1));
  const std::string address = wait_for_address_of(root[0]);
  ASSERT_EQ(address, known_address);
  const Stranger stranger([&] { GetParam().body(Address(address), words); });
  EXPECT_TRUE(stranger.wait_until_done());
  visited[0] = 1;
  expect_in_time(children, GetParam().must_succeed);
}

INSTANTIATE_TEST_SUITE_P(All, Visitor, ::testing::ValuesIn(visits()),
                         [](const auto& param_info) { return param_info.param.name; });

// ---- A stranger in the place of rank 0 ------------------------------------------------------------------------------

struct Impostor {
  std::string name;
  std::function<void(const Address& address)> body;
  friend std::ostream& operator<<(std::ostream& stream, const Impostor& impostor) { return stream << impostor.name; }
};

/// Takes whoever comes, for ever, and does `reply` with him.
std::function<void(const Address&)> host(const std::function<void(int fd)>& reply) {
  return [reply](const Address& address) {
    const int listener = address.listen(16);
    const pid_t pid = ::fork();
    if (pid != 0) return;  // the stranger has done what it came for; its child goes on
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
      const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd >= 0) reply(fd);
    }
  };
}

std::string receive_bytes(int fd) {
  std::array<char, 4096> bytes{};
  const ssize_t size = ::recv(fd, bytes.data(), bytes.size(), 0);
  return {bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(size, 0))};
}

std::vector<Impostor> impostors() {
  std::vector<Impostor> all;
  all.push_back({"FullBacklog", [](const Address& address) {
                   (void)address.listen(0);
                   while (address.connect(SOCK_NONBLOCK) >= 0) {
                   }
                 }});
  all.push_back({"Silent", host([](int) {})});
  all.push_back({"ClosesAtOnce", host([](int fd) { ::close(fd); })});
  all.push_back({"ListensAndCloses", host([](int fd) {
                   (void)receive_bytes(fd);
                   ::close(fd);
                 })});
  all.push_back({"Echo", host([](int fd) { send_bytes(fd, receive_bytes(fd)); })});
  for (const std::size_t size : {std::size_t{1}, std::size_t{12}, std::size_t{16}, std::size_t{32}}) {
    all.push_back({fmt::format("Garbage{}", size), host([size](int fd) { send_bytes(fd, random_bytes(size, size)); })});
    // Zeros are "all is well" in many a protocol.
    all.push_back({fmt::format("ZerosWithMemory{}", size), host([size](int fd) {
                     const int memory = ::memfd_create("stranger", MFD_CLOEXEC);
                     for (int idx = 0; idx < 20; ++idx) send_bytes(fd, std::string(size, '\0'), {memory});
                     ::close(memory);
                   })});
  }
  return all;
}

class InPlaceOfRank0 : public ::testing::TestWithParam<Impostor> {};

TEST_P(InPlaceOfRank0, RanksSayWhyTheyDoNotMeet) {
  const std::string job = unique_job();
  const std::string address = learn_address(job);
  ASSERT_FALSE(address.empty()) << "rank 0 opens no abstract address";
  const Stranger stranger([&] { GetParam().body(Address(address)); });
  ASSERT_TRUE(stranger.wait_until_done());
  const Ranks ranks(job);
  ReportingChildren children({ranks.body(0), ranks.body(1), ranks.body(2)});
  expect_in_time(children, false);
  for (std::size_t rank = 0; rank < kStrangerRanks && !HasFatalFailure(); ++rank) {
    EXPECT_TRUE(children.report(rank).threw) << "rank " << rank << " has met nobody";
  }
}

INSTANTIATE_TEST_SUITE_P(All, InPlaceOfRank0, ::testing::ValuesIn(impostors()),
                         [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace epistle::testing
