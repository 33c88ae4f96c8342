#include "report/progress.hpp"

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <system_error>
#include <utility>

#include <sys/ioctl.h>

#include <fmt/format.h>

#include "report/format.hpp"

namespace epistle {
namespace {

// Work that is done sooner shows no bar: a flash helps nobody.
constexpr std::chrono::milliseconds kFirstDraw{300};
constexpr std::chrono::milliseconds kRedraw{100};
constexpr int kBarColumns = 24;
constexpr int kFallbackColumns = 80;
constexpr std::string_view kClearLine = "\r\033[K";  // ECMA-48: erase from the cursor to the end of the line

bool can_draw(int fd) {
  const char* const term = std::getenv("TERM");
  return ::isatty(fd) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

int terminal_columns(int fd) {
  winsize size{};
  return ::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kFallbackColumns;
}

}  // namespace

std::string render_progress(const ProgressState& state, int max_columns) {
  std::string line = state.label;
  if (state.total > 0) {
    const double fraction = std::clamp(static_cast<double>(state.done) / static_cast<double>(state.total), 0.0, 1.0);
    const auto filled = static_cast<std::size_t>(fraction * kBarColumns);
    constexpr double kPercent = 100.0;
    line += fmt::format(" [{}{}] {:3.0f}%  elapsed {}", std::string(filled, '#'),
                        std::string(static_cast<std::size_t>(kBarColumns) - filled, '-'), fraction * kPercent,
                        format_clock(state.elapsed_s));
    if (fraction > 0.0) line += fmt::format("  left {}", format_clock(state.elapsed_s * (1.0 - fraction) / fraction));
  } else {
    line += fmt::format("  elapsed {}", format_clock(state.elapsed_s));
  }
  // A longer line would wrap, and only its last row could be cleared.
  if (display_width(line) > static_cast<std::size_t>(std::max(max_columns, 0))) {
    line.resize(static_cast<std::size_t>(std::max(max_columns, 0)));
  }
  return line;
}

Progress::Progress(std::string label, bool quiet, int fd) : fd_(fd) {
  state_.label = std::move(label);
  if (quiet || !can_draw(fd)) return;
  try {
    thread_ = std::thread([this] { draw_until_finished(); });
  } catch (const std::system_error&) {
    // Decoration: where there is no thread for it, the work goes on.
  }
}

void Progress::begin(std::string label) {
  const std::lock_guard lock(mutex_);
  state_ = {.label = std::move(label), .done = 0, .total = 0, .elapsed_s = 0.0};
  start_ = Clock::now();
}

void Progress::update(std::int64_t done, std::int64_t total) {
  const std::lock_guard lock(mutex_);
  state_.done = done;
  state_.total = total;
}

void Progress::finish() {
  {
    const std::lock_guard lock(mutex_);
    finished_ = true;
  }
  finished_changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (drawn_) write(std::string(kClearLine));
  drawn_ = false;
}

void Progress::draw_until_finished() {
  std::unique_lock lock(mutex_);
  for (auto pause = kFirstDraw; !finished_changed_.wait_for(lock, pause, [this] { return finished_; });
       pause = kRedraw) {
    const std::chrono::duration<double> elapsed = Clock::now() - start_;
    state_.elapsed_s = elapsed.count();
    write(std::string(kClearLine) + render_progress(state_, terminal_columns(fd_) - 1));
    drawn_ = true;
  }
}

void Progress::write(const std::string& text) const {
  // Decoration: where the terminal does not take it, the work goes on.
  [[maybe_unused]] const ssize_t written = ::write(fd_, text.data(), text.size());
}

}  // namespace epistle
