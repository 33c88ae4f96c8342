#include "balance/metrics_server.hpp"

#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "group/descriptor.hpp"
#include "support/http.hpp"

namespace epistle::balance {
namespace {

using test::ask_loopback;
using test::connect_to_loopback;

constexpr const char* kScrape = "GET /metrics HTTP/1.1\r\n\r\n";
constexpr std::chrono::milliseconds kEndlessPatience{600'000};

/// The exit code of a process that does `body` and nothing else: 0 where it returns true.
template <typename Body>
int exit_code_of(const Body& body) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(body() ? 0 : 1);
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::chrono::microseconds processor_time() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return std::chrono::seconds(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         std::chrono::microseconds(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

ErrorCode code_of_parse(const std::string& text) {
  try {
    (void)MetricsAddress::parse(text);
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::kOk;
}

TEST(MetricsServer, GivesTheTextOfNowToWhoeverAsks) {
  int num_calls = 0;
  const MetricsServer server({}, [&] { return "epistle_x " + std::to_string(++num_calls) + "\n"; });
  for (int call = 1; call <= 3; ++call) {
    const std::string answer = ask_loopback(server.port(), "GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n");
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 OK\r\n")) << answer;
    EXPECT_NE(answer.find("Content-Type: text/plain; version=0.0.4"), std::string::npos) << answer;
    EXPECT_TRUE(answer.ends_with("\r\n\r\nepistle_x " + std::to_string(call) + "\n")) << answer;
    EXPECT_NE(answer.find("Content-Length: 12\r\n"), std::string::npos) << answer;
  }
  const std::string head = ask_loopback(server.port(), "HEAD /metrics HTTP/1.0\r\n\r\n");
  EXPECT_TRUE(head.ends_with("\r\n\r\n")) << head;
  EXPECT_EQ(server.num_scrapes(), 4);
}

TEST(MetricsServer, AnswersWhatItCannotServeAndGoesOn) {
  const MetricsServer server({}, [] { return std::string("x\n"); });
  const std::pair<const char*, const char*> requests[] = {{"GET / HTTP/1.1\r\n\r\n", "404"},
                                                          {"POST /metrics HTTP/1.1\r\n\r\n", "405"},
                                                          {"nonsense\r\n\r\n", "400"},
                                                          {"GET /metrics HTTP/1.1\r\n", "400"},
                                                          {"", "400"}};
  for (const auto& [request, status] : requests) {
    EXPECT_TRUE(ask_loopback(server.port(), request).starts_with(std::string("HTTP/1.1 ") + status)) << request;
  }
  // Closed before all of it was read; what comes back then is the kernel's affair.
  (void)ask_loopback(server.port(), std::string(100'000, 'a'));
  EXPECT_TRUE(ask_loopback(server.port(), "GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
  const MetricsServer failing({}, []() -> std::string { throw std::runtime_error("no figures yet"); });
  const std::string answer = ask_loopback(failing.port(), "GET /metrics HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 500")) << answer;
  EXPECT_TRUE(answer.ends_with("no figures yet\n")) << answer;
}

TEST(MetricsServer, SilentClientsHoldUpNobody) {
  const MetricsServer server(
      {}, [] { return std::string("x\n"); }, kEndlessPatience);
  std::vector<UniqueFd> silent;
  for (int client = 0; client < 20; ++client) silent.emplace_back(connect_to_loopback(server.port()));
  ASSERT_EQ(::send(silent.back().get(), "GET /me", 7, 0), 7);
  EXPECT_TRUE(ask_loopback(server.port(), kScrape).starts_with("HTTP/1.1 200"));
  const std::string rest = "trics HTTP/1.1\r\n\r\n";
  ASSERT_EQ(::send(silent.back().get(), rest.data(), rest.size(), 0), static_cast<ssize_t>(rest.size()));
  EXPECT_TRUE(test::read_to_end(silent.back().get()).starts_with("HTTP/1.1 200"));
}

TEST(MetricsServer, SilentClientsAreDroppedInTheEnd) {
  const MetricsServer server(
      {}, [] { return std::string("x\n"); }, std::chrono::milliseconds(20));
  const UniqueFd silent(connect_to_loopback(server.port()));
  EXPECT_TRUE(test::read_to_end(silent.get()).starts_with("HTTP/1.1 400"));
}

// Nobody can be let in, and the listener stays ready all the time.
TEST(MetricsServer, WaitsQuietlyWhereDescriptorsRunOut) {
  const int exit_code = exit_code_of([] {
    const MetricsServer server({}, [] { return std::string("x\n"); });
    const UniqueFd client(connect_to_loopback(server.port()));
    // The server has taken that one in, which shows by its answer.
    (void)::send(client.get(), kScrape, std::char_traits<char>::length(kScrape), 0);
    (void)test::read_to_end(client.get());
    rlimit before{};
    ::getrlimit(RLIMIT_NOFILE, &before);
    const UniqueFd waiting(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    // The lowest number that was free: all below are taken.
    const rlimit none{static_cast<rlim_t>(waiting.get()) + 1, before.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &none);
    (void)test::connect_to_loopback(server.port(), waiting.get());
    (void)::send(waiting.get(), kScrape, std::char_traits<char>::length(kScrape), 0);
    const auto used_before = processor_time();
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const bool was_quiet = processor_time() - used_before < std::chrono::milliseconds(100);
    ::setrlimit(RLIMIT_NOFILE, &before);
    return was_quiet && test::read_to_end(waiting.get()).starts_with("HTTP/1.1 200");
  });
  EXPECT_EQ(exit_code, 0);
}

TEST(MetricsServer, TakesNoNumberOfAStandardStream) {
  const int exit_code = exit_code_of([] {
    for (const int fd : {0, 1, 2}) ::close(fd);
    const MetricsServer server({}, [] { return std::string("x\n"); });
    for (const int fd : {0, 1, 2}) {
      if (::fcntl(fd, F_GETFD) != -1) return false;
    }
    return true;
  });
  EXPECT_EQ(exit_code, 0);
}

TEST(MetricsServer, IsOnLoopbackUnlessToldOtherwise) {
  EXPECT_EQ(MetricsAddress::parse("9400").host, "127.0.0.1");
  EXPECT_EQ(MetricsAddress::parse("9400").port, 9400);
  EXPECT_EQ(MetricsAddress::parse("0.0.0.0:0").host, "0.0.0.0");
  for (const char* const text : {"", "x", "70000", "host:1", "1.2.3.4:", ":5", "1.2.3.4:-1"}) {
    EXPECT_EQ(code_of_parse(text), ErrorCode::kInvalidArgument) << text;
  }
}

TEST(MetricsServer, SaysWhereAPortIsTaken) {
  const MetricsServer first({}, [] { return std::string(); });
  try {
    const MetricsServer second({.port = first.port()}, [] { return std::string(); });
    FAIL() << "two servers at one port";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kSystem);
    EXPECT_NE(std::string(error.what()).find(std::to_string(first.port())), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace epistle::balance
