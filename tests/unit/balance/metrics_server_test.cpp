#include "balance/metrics_server.hpp"

#include <stdexcept>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "support/http.hpp"

namespace epistle::balance {
namespace {

using test::ask_loopback;

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
