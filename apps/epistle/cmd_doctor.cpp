// epistle doctor: what there is, and proof that it works.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "epistle/models.hpp"

#include "commands.hpp"
#include "doctor_own.hpp"
#include "doctor_packages.hpp"
#include "doctor_report.hpp"
#include "not_empty.hpp"
#include "number_options.hpp"
#include "optional_json.hpp"
#include "output.hpp"
#include "topology/nccl_version.hpp"

namespace epistle::cli {
namespace {

constexpr std::int64_t kDoctorMaxEp = 4096;
constexpr std::int64_t kDoctorMaxTokens = std::int64_t{1} << 28;
constexpr std::int64_t kMaxSeconds = 3600;

constexpr const char* kDoctorFooter =
    "Four levels are shown of every backend: selected (known by that name), imported (package or build has it),\n"
    "initialised (its buffers were made), steady (iterations ran and every bit was right). '-' is a level that was "
    "not\n"
    "tried. Epistle's own dispatchers run for real, on the host and on GPUs; packages of others run as two ranks in "
    "processes\n"
    "of their own, so that a crash or a hang there is a finding.\n"
    "\n"
    "Examples:\n"
    "  epistle doctor\n"
    "  epistle doctor --python /opt/venv/bin/python --json doctor.json\n"
    "  epistle doctor --model deepseek-v3 --ep 8 --tokens 4096";

struct DoctorOptions {
  std::string python;
  std::vector<std::string> packages;  ///< empty = all
  bool skip_own = false;
  std::int64_t limit_s = 20;
  std::string model = "qwen3-30b-a3b";
  std::int64_t ep = 0;
  std::int64_t tokens = 4096;
  std::string json_target;
};

MemoryQuestion make_question(const DoctorOptions& options, const NvmlProbe& gpus) {
  const ModelPreset& model = find_model(options.model);
  constexpr std::int32_t kUsualRanks = 8;
  MemoryQuestion question;
  const auto num_gpus = static_cast<std::int32_t>(gpus.gpus.size());
  question.num_ranks = options.ep > 0 ? static_cast<std::int32_t>(options.ep) : num_gpus > 1 ? num_gpus : kUsualRanks;
  question.config.hidden = model.hidden;
  question.config.num_experts = model.num_experts;
  question.config.top_k = model.top_k;
  question.config.max_tokens = options.tokens;
  // Where every routing fits: all ranks may send all that they have to one.
  question.config.sizing = Capacity{.rows_per_rank = options.tokens * question.num_ranks};
  return question;
}

void examine(const DoctorOptions& options) {
  if (!options.json_target.empty()) check_output(options.json_target);
  const std::chrono::milliseconds limit = std::chrono::seconds(options.limit_s);
  DoctorReport report;
  report.gpus = probe_nvml();
  report.nvlink_fabric = probe_nvlink_fabric();
  report.question = make_question(options, report.gpus);
  report.nics = probe_nics();
  report.fabric = probe_fabric();
  report.nccl_version = probe_nccl_version();
  report.python = probe_python(options.python, limit);
  report.own = options.skip_own ? list_own("--skip-own") : probe_own(report.gpus, limit);
  report.packages = probe_packages(options.packages, options.python, limit);
  report.memory = plan_memory(report.question, report.gpus);
  if (!options.json_target.empty()) write_output(options.json_target, json_text(doctor_json(report)));
  if (options.json_target != kStdout) print(render_doctor(report));
}

}  // namespace

void add_doctor_command(CLI::App& app, int& /*exit_code*/) {
  CLI::App* const command = app.add_subcommand("doctor", "Show what this machine has, and prove which backends work");
  const auto options = std::make_shared<DoctorOptions>();
  command->add_option("--python", options->python, "Python interpreter whose packages are tried")
      ->check(not_empty())
      ->type_name("PATH");
  command
      ->add_option("--packages", options->packages,
                   "Packages to try, separated by commas: deepep, deepep-v2, hybridep, ncclep, flashinfer, mori, nixl, "
                   "uccl (default: all)")
      ->delimiter(',')
      ->type_name("NAME,...");
  command->add_flag("--skip-own", options->skip_own, "Do not run Epistle's own dispatchers");
  add_number(*command, "--time-limit", options->limit_s, {1, kMaxSeconds},
             "Seconds for each probe in a process of its own (default: 20)")
      ->type_name("S");
  command
      ->add_option("--model", options->model,
                   "Shape for the memory of a rank; see 'epistle models' (default: qwen3-30b-a3b)")
      ->check(not_empty())
      ->type_name("NAME");
  add_number(*command, "--ep", options->ep, {1, kDoctorMaxEp},
             "Ranks for the memory of a rank (default: the GPUs, or 8)");
  add_number(*command, "--tokens", options->tokens, {1, kDoctorMaxTokens},
             "Tokens per rank for the memory of a rank (default: 4096)");
  add_optional_json_option(*command, options->json_target);
  command->footer(kDoctorFooter);
  command->callback([options] { examine(*options); });
}

}  // namespace epistle::cli
