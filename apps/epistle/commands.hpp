// The subcommands. Each lives in the file cmd_<name>.cpp and is listed in main.cpp; its callback sets `exit_code`, or
// throws an Error that main reports.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace epistle::cli {

void add_balance_command(CLI::App& app, int& exit_code);
void add_bench_command(CLI::App& app, int& exit_code);
void add_calibrate_command(CLI::App& app, int& exit_code);
void add_compare_command(CLI::App& app, int& exit_code);
void add_doctor_command(CLI::App& app, int& exit_code);
void add_models_command(CLI::App& app, int& exit_code);
void add_plan_command(CLI::App& app, int& exit_code);
void add_select_command(CLI::App& app, int& exit_code);
void add_simulate_command(CLI::App& app, int& exit_code);
void add_settings_command(CLI::App& app, int& exit_code);
void add_trace_command(CLI::App& app, int& exit_code);
void add_tune_command(CLI::App& app, int& exit_code);

/// `program` are the arguments behind "--": they go to another program, so the parser must not see them.
void add_run_command(CLI::App& app, const std::vector<std::string>& program, int& exit_code);

}  // namespace epistle::cli
