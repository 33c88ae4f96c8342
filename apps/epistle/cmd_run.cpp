// epistle run: the ranks of a program as processes of this host.
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/error.hpp"

#include "commands.hpp"
#include "exit_codes.hpp"
#include "group/limits.hpp"
#include "launch/launcher.hpp"
#include "number_options.hpp"

namespace epistle::cli {
namespace {

constexpr double kAutomaticGrace = -1.0;
constexpr double kMaxGraceSeconds = 86400.0;  // as long as the longest timeout

struct RunOptions {
  LaunchOptions launch;
  double grace_s = kAutomaticGrace;
  int domain_size = 0;
};

constexpr const char* kRunFooter =
    "epistle run -n N [OPTIONS] -- PROGRAM [ARGUMENTS]\n"
    "\n"
    "Every rank gets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE and EPISTLE_JOB. Rank 0 reads standard input "
    "unless\n"
    "it is a terminal.\n"
    "\n"
    "All ranks end when this command ends, however it ends, and so does all that they started: children of wrapper\n"
    "scripts, daemons, programs that changed their user. What is left when all ranks have ended gets SIGTERM, and "
    "SIGKILL\n"
    "two seconds later. Not reached are programs that you may not signal (setuid root), what a service starts on "
    "request\n"
    "(docker, systemd-run), and, where both this command and its process 'rank-keeper' are killed with SIGKILL at "
    "once,\n"
    "grandchildren.\n"
    "\n"
    "When a rank fails, or SIGINT (Ctrl-C) is passed on, the others have the grace period to end by themselves; then "
    "they\n"
    "get SIGTERM, and SIGKILL two seconds later. A second SIGINT, SIGTERM and SIGHUP end the grace period at once. The "
    "exit\n"
    "code is that of the first rank that failed, 128 + N where signal N killed it or this command got signal N, 127 "
    "where\n"
    "PROGRAM cannot be executed, and 5 where labelled output was lost or a process cannot be started or ended.\n"
    "\n"
    "Examples:\n"
    "  epistle run -n 8 -- ./train --epochs 1\n"
    "  epistle run -n 4 --label --grace 2 -- python3 train.py";

}  // namespace

void add_run_command(CLI::App& app, const std::vector<std::string>& program, int& exit_code) {
  CLI::App* const command = app.add_subcommand("run", "Run a program as several ranks on this host");
  command->allow_extras();
  const auto options = std::make_shared<RunOptions>();
  add_number(*command, "-n,--ranks", options->launch.num_ranks, {1, kMaxRanksOfHost}, "Number of ranks")->required();
  command->add_flag("--label", options->launch.label_output, "Put '[rank R] ' before every line of output");
  add_number(*command, "--grace", options->grace_s, {0.0, kMaxGraceSeconds},
             "Time for the ranks to end by themselves after one failed (default: 5) or SIGINT (default: 30)")
      ->type_name("SECONDS");
  add_number(*command, "--domain-size", options->domain_size, {1, kMaxRanksOfHost},
             "Declare domains of this many ranks, so that several are played on this host (sets EPISTLE_DOMAIN_SIZE)");
  command->footer(kRunFooter);
  command->callback([command, options, &program, &exit_code] {
    const std::vector<std::string> extras = command->remaining();
    if (!extras.empty() || program.empty()) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("{}; the program and its arguments stand behind '--': epistle run -n {} -- PROGRAM ...",
                              extras.empty() ? "no program to run" : fmt::format("unexpected '{}'", extras.front()),
                              options->launch.num_ranks));
    }
    options->launch.command = program;
    if (options->grace_s >= 0.0) {
      options->launch.grace =
          std::chrono::round<std::chrono::milliseconds>(std::chrono::duration<double>(options->grace_s));
    }
    if (options->domain_size > 0) {
      options->launch.environment.emplace_back(
          "EPISTLE_DOMAIN_SIZE", std::to_string(resolve_domain_size(options->domain_size, options->launch.num_ranks)));
    }
    options->launch.peer_lost_exit_code = kExitPeerLost;
    exit_code = launch_ranks(options->launch);
  });
}

}  // namespace epistle::cli
