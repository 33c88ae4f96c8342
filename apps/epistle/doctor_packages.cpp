#include "doctor_packages.hpp"

#include <algorithm>
#include <array>
#include <string_view>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "bounded_run.hpp"
#include "json_text.hpp"
#include "select/backends.hpp"

namespace epistle::cli {
namespace {

struct Package {
  std::string_view backend;
  std::string_view modules;  ///< tried in this order, separated by commas
  std::string_view name;     ///< that the module must have; empty = any
};

constexpr std::array kPackages = {
    Package{"deepep", "deep_ep", "Buffer"},
    Package{"deepep-v2", "deep_ep", "ElasticBuffer"},
    Package{"hybridep", "deep_ep", "HybridEPBuffer"},
    Package{"ncclep", "nccl.ep,transformer_engine.pytorch.ep", ""},
    Package{"flashinfer", "flashinfer.comm.trtllm_moe_alltoall", "MoeAlltoAll"},
    Package{"mori", "mori.ops", "EpDispatchCombineConfig"},
    Package{"nixl", "nixl_ep", "Buffer"},
    Package{"uccl", "uccl.ep", ""},
};

// The last line of its output is the answer: packages print when they are imported.
constexpr std::string_view kImport = R"(
import importlib, json, sys
errors = []
for module in sys.argv[1].split(","):
    try:
        found = importlib.import_module(module)
        if sys.argv[2] and not hasattr(found, sys.argv[2]):
            raise AttributeError(module + " has no " + sys.argv[2])
        top = sys.modules.get(module.split(".")[0])
        print("\n" + json.dumps({"imported": True, "version": str(getattr(top, "__version__", ""))}))
        sys.exit(0)
    except Exception as error:
        errors.append(type(error).__name__ + ": " + str(error))
print("\n" + json.dumps({"imported": False, "error": "; ".join(errors)}))
)";

constexpr std::string_view kVersions = R"(
import json, platform
answer = {"python": platform.python_version(), "torch": "", "cuda": "", "nccl": ""}
try:
    import torch
    answer["torch"] = str(torch.__version__)
    answer["cuda"] = str(torch.version.cuda or "")
    answer["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())
except Exception:
    pass
print("\n" + json.dumps(answer))
)";

/// The answer in the last line, or nothing.
Json last_line(const std::string& text) {
  const std::size_t end = text.find_last_not_of("\r\n ");
  if (end == std::string::npos) return {};
  const std::size_t begin = text.rfind('\n', end);
  const Json answer = Json::parse(text.substr(begin == std::string::npos ? 0 : begin + 1, end - begin), nullptr, false);
  return answer.is_object() ? answer : Json();
}

std::string text_of(const Json& answer, const char* name) {
  const auto found = answer.find(name);
  return found != answer.end() && found->is_string() ? found->get<std::string>() : std::string();
}

/// The end of a traceback or of a complaint of the loader.
std::string last_words(const std::string& text) {
  const std::size_t end = text.find_last_not_of("\r\n ");
  if (end == std::string::npos) return {};
  const std::size_t begin = text.rfind('\n', end);
  return text.substr(begin == std::string::npos ? 0 : begin + 1, end - (begin == std::string::npos ? 0 : begin));
}

BackendProof probe_package(const Package& package, const std::string& python, std::chrono::milliseconds limit) {
  BackendProof proof;
  proof.name = package.backend;
  proof.device = "cuda";
  proof.selected = true;
  proof.fix = find_backend(package.backend).fix;
  if (python.empty()) {
    proof.reason = "not tried: no --python";
    proof.fix = "give the interpreter of the container with --python PATH";
    return proof;
  }
  const BoundedRun run =
      run_bounded({python, "-c", std::string(kImport), std::string(package.modules), std::string(package.name)}, limit);
  const Json answer = last_line(run.out);
  if (!run.succeeded() || answer.is_null()) {
    proof.imported = false;
    proof.reason = fmt::format("importing {} {}{}", package.modules, run.describe(),
                               run.err.empty() ? "" : ": " + last_words(run.err));
    return proof;
  }
  const auto imported = answer.find("imported");
  proof.imported = imported != answer.end() && imported->is_boolean() && imported->get<bool>();
  proof.version = text_of(answer, "version");
  if (!*proof.imported) {
    proof.reason = text_of(answer, "error");
  } else {
    proof.reason = "imported; its buffers and iterations were not tried: they need its ranks";
    proof.fix = "run it in the engine that will use it, and see kernels of its name in a profile";
  }
  return proof;
}

}  // namespace

PythonVersions probe_python(const std::string& python, std::chrono::milliseconds limit) {
  PythonVersions versions;
  if (python.empty()) return versions;
  const BoundedRun run = run_bounded({python, "-c", std::string(kVersions)}, limit);
  const Json answer = last_line(run.out);
  if (!run.succeeded() || answer.is_null()) {
    versions.missing = fmt::format("{} {}", python, run.describe());
    return versions;
  }
  versions.python = text_of(answer, "python");
  versions.torch = text_of(answer, "torch");
  versions.torch_cuda = text_of(answer, "cuda");
  versions.torch_nccl = text_of(answer, "nccl");
  return versions;
}

std::vector<BackendProof> probe_packages(const std::string& python, std::chrono::milliseconds limit) {
  std::vector<BackendProof> proofs;
  for (const Package& package : kPackages) proofs.push_back(probe_package(package, python, limit));
  return proofs;
}

}  // namespace epistle::cli
