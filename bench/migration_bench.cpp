// What a migration of weights does to the steps that go on meanwhile: `bench_migration [SECONDS]`, for each way to
// copy.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "measure/statistics.hpp"
#include "migration_steps.hpp"
#include "report/format.hpp"
#include "report/table.hpp"

namespace epistle::bench {
namespace {

void print_times(double seconds) {
  Table table({{"copied by", Align::kLeft},
               {"calls", Align::kRight},
               {"dispatch p50", Align::kRight},
               {"moving", Align::kRight},
               {"p99", Align::kRight},
               {"moving", Align::kRight},
               {"of p99", Align::kRight},
               {"quiet of quiet", Align::kRight},
               {"step p50", Align::kRight},
               {"moving", Align::kRight},
               {"migrations", Align::kRight},
               {"into a rank", Align::kRight},
               {"goal", Align::kRight},
               {"met", Align::kLeft}});
  bool is_pinned = true;
  for (const CopyMode mode : kCopyModes) {
    const SegmentTimes times = measure_migration(mode, seconds);
    is_pinned = is_pinned && times.is_pinned;
    const std::vector<double> quiet = all_of(times.quiet_us);
    const std::vector<double> moving = all_of(times.moving_us);
    const RatioInterval interval = p99_ratio(times.moving_us, times.quiet_us);
    table.add_row({std::string(to_string(mode)), format_count(static_cast<std::int64_t>(moving.size())),
                   format_us(summarize(quiet).median), format_us(summarize(moving).median),
                   format_us(summarize(quiet).p99), format_us(summarize(moving).p99), to_text(interval),
                   to_text(noise_of(times)), format_us(summarize(times.quiet_steps_us).median),
                   format_us(summarize(times.moving_steps_us).median), format_count(times.num_migrations),
                   format_bytes(times.bytes_moved), fmt::format("{:.2f}", kP99Goal),
                   std::string(verdict_on(interval))});
  }
  std::fputs(table.render().c_str(), stdout);
  std::fputs(is_pinned ? "Every rank has a core of its own; a copying thread has the others.\n"
                       : "Ranks and copying threads share cores: there are too few for one each.\n",
             stdout);
}

}  // namespace
}  // namespace epistle::bench

int main(int argc, char** argv) {
  constexpr double kDefaultSeconds = 10.0;
  const double seconds = argc > 1 ? std::strtod(argv[1], nullptr) : kDefaultSeconds;
  if (argc > 2 || !(seconds > 0.0)) {
    std::fputs("usage: bench_migration [SECONDS]\n", stderr);
    return 2;
  }
  epistle::bench::print_times(seconds);
  return 0;
}
