#include <chrono>
#include <cstdlib>
#include <limits>
#include <string>
#include <thread>

#include <fcntl.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "report/bar.hpp"
#include "report/format.hpp"
#include "report/progress.hpp"
#include "report/table.hpp"
#include "support/environment.hpp"

namespace epistle {
namespace {

TEST(Format, Bytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1 KiB");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(3 << 19), "1.5 MiB");
  EXPECT_EQ(format_bytes(64 << 20), "64 MiB");
  EXPECT_EQ(format_bytes((1 << 20) - 1), "1.0 MiB");  // not "1024.0 KiB"
  EXPECT_EQ(format_bytes(std::numeric_limits<std::int64_t>::max()), "8 EiB");
  EXPECT_EQ(format_bytes(-2048), "-2 KiB");
}

TEST(Format, Microseconds) {
  EXPECT_EQ(format_us(0.0), "0.00 us");
  EXPECT_EQ(format_us(0.417), "0.42 us");
  EXPECT_EQ(format_us(12.34), "12.3 us");
  EXPECT_EQ(format_us(99.96), "100 us");
  EXPECT_EQ(format_us(999.4), "999 us");
  EXPECT_EQ(format_us(999.6), "1.00 ms");
  EXPECT_EQ(format_us(4560.0), "4.56 ms");
  EXPECT_EQ(format_us(7.89e6), "7.89 s");
  EXPECT_EQ(format_us(1.2e9), "1200 s");
}

TEST(Format, Rate) {
  EXPECT_EQ(format_rate(0.0), "0.00 B/s");
  EXPECT_EQ(format_rate(456e6), "456 MB/s");
  EXPECT_EQ(format_rate(12.34e9), "12.3 GB/s");
  EXPECT_EQ(format_rate(3.35e12), "3.35 TB/s");
}

TEST(Format, Count) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1,000");
  EXPECT_EQ(format_count(1234567), "1,234,567");
  EXPECT_EQ(format_count(-123), "-123");
  EXPECT_EQ(format_count(-1234), "-1,234");
}

TEST(Format, PercentAndClock) {
  EXPECT_EQ(format_percent(0.1234), "12.3%");
  EXPECT_EQ(format_clock(7.2), "0:07");
  EXPECT_EQ(format_clock(754.0), "12:34");
  EXPECT_EQ(format_clock(3723.0), "1:02:03");
  EXPECT_EQ(format_clock(-1.0), "0:00");
}

TEST(Table, AlignsAndLeavesNoTrailingSpace) {
  Table table({{"name", Align::kLeft}, {"rows", Align::kRight}, {"note", Align::kLeft}});
  table.add_row({"a", "7", "short"});
  table.add_row({"longer", "1,234", ""});
  EXPECT_EQ(table.render(),
            "name     rows  note\n"
            "------  -----  -----\n"
            "a           7  short\n"
            "longer  1,234\n");
}

TEST(Table, CountsCharactersNotBytes) {
  Table table({{"bar", Align::kLeft}, {"n", Align::kRight}});
  table.add_row({"\u2588\u2588", "1"});
  table.add_row({"####", "2"});
  EXPECT_EQ(table.render(),
            "bar   n\n"
            "----  -\n"
            "\u2588\u2588    1\n"
            "####  2\n");
}

TEST(Table, EmptyTableHasHeaderOnly) { EXPECT_EQ(Table({{"a", Align::kRight}}).render(), "a\n-\n"); }

TEST(Table, RejectsRowsOfAnotherWidth) {
  Table table({{"a"}, {"b"}});
  EXPECT_THROW(table.add_row({"1"}), Error);
}

TEST(Bar, Ascii) {
  EXPECT_EQ(make_bar(0.0, 10, BarStyle::kAscii), "");
  EXPECT_EQ(make_bar(0.5, 10, BarStyle::kAscii), "#####");
  EXPECT_EQ(make_bar(0.001, 10, BarStyle::kAscii), "#");
  EXPECT_EQ(make_bar(7.0, 10, BarStyle::kAscii), "##########");
  EXPECT_EQ(make_bar(std::numeric_limits<double>::quiet_NaN(), 10, BarStyle::kAscii), "");
}

TEST(Bar, Unicode) {
  EXPECT_EQ(make_bar(1.0, 2, BarStyle::kUnicode), "\u2588\u2588");
  EXPECT_EQ(make_bar(0.75, 2, BarStyle::kUnicode), "\u2588\u258c");
  EXPECT_EQ(make_bar(0.001, 2, BarStyle::kUnicode), "\u258f");
}

TEST(Bar, StyleFollowsTheLocale) {
  test::ScopedEnvironment environment;
  for (const char* const name : {"LC_ALL", "LC_CTYPE", "LANG"}) environment.unset(name);
  EXPECT_EQ(detect_bar_style(), BarStyle::kAscii);
  environment.set("LANG", "en_US.UTF-8");
  EXPECT_EQ(detect_bar_style(), BarStyle::kUnicode);
  environment.set("LC_CTYPE", "de_DE.utf8");
  EXPECT_EQ(detect_bar_style(), BarStyle::kUnicode);
  environment.set("LC_ALL", "C");
  EXPECT_EQ(detect_bar_style(), BarStyle::kAscii);
}

TEST(Progress, RendersFractionElapsedAndLeft) {
  EXPECT_EQ(render_progress({.label = "read", .done = 25, .total = 100, .elapsed_s = 2.0}, 100),
            "read [######------------------]  25%  elapsed 0:02  left 0:06");
  EXPECT_EQ(render_progress({.label = "read", .done = 0, .total = 0, .elapsed_s = 2.0}, 100), "read  elapsed 0:02");
  EXPECT_EQ(render_progress({.label = "read", .done = 300, .total = 100, .elapsed_s = 1.0}, 12), "read [######");
}

// A terminal and the end of it that a program writes to.
class Terminal {
 public:
  Terminal() : master_(::posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK)) {
    if (master_ >= 0 && ::grantpt(master_) == 0 && ::unlockpt(master_) == 0) {
      slave_ = ::open(::ptsname(master_), O_RDWR | O_NOCTTY);
    }
  }
  ~Terminal() {
    ::close(slave_);
    ::close(master_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  [[nodiscard]] int fd() const noexcept { return slave_; }
  /// Waits until `text` has been written.
  [[nodiscard]] bool shows(const std::string& text) const {
    constexpr std::chrono::seconds kLimit{10};
    const auto deadline = std::chrono::steady_clock::now() + kLimit;
    for (std::string all; std::chrono::steady_clock::now() < deadline;) {
      all += written();
      if (all.find(text) != std::string::npos) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }
  [[nodiscard]] std::string written() const {
    std::string text(4096, '\0');
    const ssize_t num_read = ::read(master_, text.data(), text.size());
    text.resize(num_read > 0 ? static_cast<std::size_t>(num_read) : 0);
    return text;
  }

 private:
  int master_;
  int slave_ = -1;
};

constexpr std::chrono::milliseconds kBeyondFirstDraw{350};

TEST(Progress, DrawsOnATerminalAndClearsItself) {
  test::ScopedEnvironment environment;
  environment.set("TERM", "xterm");
  const Terminal terminal;
  if (terminal.fd() < 0) GTEST_SKIP() << "no pseudo terminals here";
  {
    Progress progress("work", false, terminal.fd());
    progress.update(5, 10);
    EXPECT_EQ(terminal.written(), "");  // too early
    EXPECT_TRUE(terminal.shows("work [############------------]  50%"));
    progress.begin("more");
    EXPECT_TRUE(terminal.shows("more  elapsed 0:00"));
    EXPECT_TRUE(terminal.shows("more  elapsed 0:01"));  // without an update
  }
  const std::string last = terminal.written();
  EXPECT_TRUE(last.ends_with("\r\033[K")) << last;
}

TEST(Progress, DrawsNothingForWorkThatIsDoneInAMoment) {
  test::ScopedEnvironment environment;
  environment.set("TERM", "xterm");
  const Terminal terminal;
  if (terminal.fd() < 0) GTEST_SKIP() << "no pseudo terminals here";
  {
    Progress progress("work", false, terminal.fd());
    progress.update(1, 2);
  }
  EXPECT_EQ(terminal.written(), "");
}

TEST(Progress, IsSilentWhenQuietOrInAPipe) {
  test::ScopedEnvironment environment;
  environment.set("TERM", "xterm");
  const Terminal terminal;
  if (terminal.fd() < 0) GTEST_SKIP() << "no pseudo terminals here";
  int pipe_fds[2];
  ASSERT_EQ(::pipe2(pipe_fds, O_NONBLOCK), 0);
  {
    Progress quiet("work", true, terminal.fd());
    Progress piped("work", false, pipe_fds[1]);
    std::this_thread::sleep_for(kBeyondFirstDraw);
    quiet.update(5, 10);
    piped.update(5, 10);
  }
  EXPECT_EQ(terminal.written(), "");
  char byte = 0;
  EXPECT_EQ(::read(pipe_fds[0], &byte, 1), -1);
  ::close(pipe_fds[0]);
  ::close(pipe_fds[1]);
}

}  // namespace
}  // namespace epistle
