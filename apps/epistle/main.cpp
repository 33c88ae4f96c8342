// The epistle command: one subcommand per file, one line on stderr per error, an exit code that says what went wrong.
#include <algorithm>
#include <exception>
#include <new>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/version.hpp"

#include "commands.hpp"
#include "exit_codes.hpp"
#include "output.hpp"
#include "standard_streams.hpp"

namespace epistle::cli {
namespace {

constexpr std::string_view kExamples =
    "Examples:\n"
    "  epistle bench --ranks 8 --group processes    dispatch and combine, verified and timed\n"
    "  epistle compare --tokens 128                 which dispatcher is faster here\n"
    "  epistle doctor                               what this machine has, and which backends work\n"
    "  epistle tune --tokens 128 --profile p.json   settings for this machine and shape\n"
    "  epistle models                               shapes of published models\n"
    "  epistle models qwen3-30b-a3b                 one of them, in full\n"
    "  epistle plan --cluster gb200-nvl72           which EP, TP and dispatcher for a model\n"
    "  epistle trace routing.jsonl.gz               how skewed a recorded routing is\n"
    "  epistle trace routing.jsonl.gz --layer 3     tokens of every expert of one layer\n"
    "  epistle balance trace:routing.jsonl.gz --ranks 8 --slots 80    where hot experts should go\n"
    "  epistle run -n 8 -- ./train --epochs 1       eight ranks of a program on this host\n"
    "  epistle select --hardware h100-hgx --ep 16 --model qwen3-30b-a3b --assume deepep\n"
    "                                               which dispatcher, and why\n"
    "  epistle select --check train.sh              what a command line really runs, and what is wrong\n"
    "  epistle simulate --ranks 64 --routing zipf:0.8   what a step moves, and who is slowest\n"
    "  epistle settings                             environment variables and their values\n";

// The order of --help, behind run.
constexpr void (*kCommands[])(CLI::App&, int&) = {
    add_bench_command,   add_compare_command,   add_tune_command,   add_trace_command,
    add_balance_command, add_calibrate_command, add_doctor_command, add_models_command,
    add_plan_command,    add_simulate_command,  add_select_command, add_settings_command,
};

int report(const std::string& message, int exit_code) {
  print_error(message);
  return exit_code;
}

std::string list_commands(const CLI::App& app) {
  std::string names;
  for (const CLI::App* const command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names += (names.empty() ? "" : ", ") + command->get_name();
  }
  return names;
}

/// An option that takes one value and got more, or null.
const CLI::Option* find_repeated(const CLI::App& app) {
  for (const CLI::App* const used : app.get_subcommands()) {
    for (const CLI::Option* const option : used->get_options()) {
      if (option->get_items_expected_max() == 1 && option->count() > 1) return option;
    }
  }
  return nullptr;
}

/// The first switch of the command that is given a value, as it was typed up to the '='; empty where none is. The
/// parser would read "--quiet=no" as it likes, and any number as yes.
std::string find_valued_switch(const CLI::App& app, const std::vector<std::string>& arguments) {
  const auto named = app.get_subcommands(
      [&](const CLI::App* command) { return !arguments.empty() && command->get_name() == arguments.front(); });
  if (named.empty()) return {};
  for (const std::string& argument : arguments) {
    const std::string name = argument.substr(0, argument.find('='));
    if (name.size() == argument.size() || !name.starts_with("--")) continue;
    const CLI::Option* const option = named.front()->get_option_no_throw(name);
    if (option != nullptr && option->get_items_expected_max() == 0) return name;
  }
  return {};
}

/// What is wrong with the command line: the parser's own words, where they say it.
std::string describe_usage(const CLI::App& app, const CLI::ParseError& error,
                           const std::vector<std::string>& arguments) {
  if (const CLI::Option* const repeated = find_repeated(app)) {
    return fmt::format("{} is given {}; give it once", repeated->get_name(),
                       repeated->count() == 2 ? "twice" : fmt::format("{} times", repeated->count()));
  }
  if (!app.get_subcommands().empty()) return error.what();
  if (arguments.empty()) return fmt::format("no command is given; the commands are {}", list_commands(app));
  const std::string& first = arguments.front();
  if (first.starts_with('-')) return fmt::format("unknown option '{}' before a command", shortened(first));
  return fmt::format("unknown command '{}'; the commands are {}", shortened(first), list_commands(app));
}

int report_usage(const CLI::App& app, const CLI::ParseError& error, const std::vector<std::string>& arguments) {
  std::string command = "epistle";
  for (const CLI::App* const used : app.get_subcommands()) command += " " + used->get_name();
  return report(fmt::format("{}; see '{} --help'", describe_usage(app, error, arguments), command), kExitUsage);
}

/// The position of the "--" behind `epistle run`, or `argc`. CLI11 would take an argument "[a,b]" apart, so the program
/// that run starts gets its arguments without passing through it.
int find_program_mark(int argc, char** argv) {
  if (argc < 2 || std::string_view(argv[1]) != "run") return argc;
  return static_cast<int>(std::find(argv, argv + argc, std::string_view("--")) - argv);
}

int run(int argc, char** argv) {
  CLI::App app("Expert-parallel dispatch and combine for mixture-of-experts models.", "epistle");
  app.set_version_flag("--version", "epistle " EPISTLE_VERSION_STRING, "Print the version");
  app.require_subcommand(1);
  app.footer(fmt::format("{}\n{}", kExamples, exit_code_help()));
  app.get_formatter()->column_width(30);
  int exit_code = kExitOk;
  const int own_argc = find_program_mark(argc, argv);
  const std::vector<std::string> program(argv + std::min(own_argc + 1, argc), argv + argc);
  add_run_command(app, program, exit_code);
  for (const auto add_command : kCommands) add_command(app, exit_code);
  const std::vector<std::string> arguments(argv + std::min(1, own_argc), argv + own_argc);
  if (const std::string name = find_valued_switch(app, arguments); !name.empty()) {
    return report(fmt::format("{} takes no value; give it alone, or leave it out; see 'epistle {} --help'", name,
                              arguments.front()),
                  kExitUsage);
  }
  try {
    app.parse(own_argc, argv);
  } catch (const CLI::ParseError& error) {
    // --help and --version arrive as errors with exit code 0.
    if (error.get_exit_code() == 0) {
      std::ostringstream text;
      const int code = app.exit(error, text, text);
      print(text.str());
      return code;
    }
    return report_usage(app, error, arguments);
  }
  return exit_code;
}

}  // namespace
}  // namespace epistle::cli

int main(int argc, char** argv) {
  using namespace epistle::cli;
  open_standard_streams();
  report_file_size_limit();
  try {
    return run(argc, argv);
  } catch (const epistle::Error& error) {
    return report(error.what(), exit_code_for(error.code()));
  } catch (const std::bad_alloc&) {
    return report("out of memory; free some, raise its limit (ulimit -v), or use a smaller problem", kExitSystem);
  } catch (const std::exception& error) {
    return report(error.what(), kExitSystem);
  }
}
