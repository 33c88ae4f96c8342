#include "html_option.hpp"

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/reject.hpp"
#include "not_empty.hpp"
#include "output.hpp"
#include "report/html/page.hpp"

namespace epistle::cli {

void add_html_option(CLI::App& command, std::string& target) {
  command.add_option("--html", target, "Write a report with charts to FILE, which a browser opens without a network")
      ->check(not_empty())
      ->type_name("FILE");
}

bool ResultTargets::leave_stdout() const noexcept { return json != kStdout && html != kStdout; }

void ResultTargets::check() const {
  if (!html.empty() && html == json) reject(fmt::format("--json and --html both go to {}; give each its own", html));
  if (!html.empty()) {
    if (const std::string_view reason = html::missing_charts(); !reason.empty()) {
      throw Error(ErrorCode::kUnsupported, fmt::format("--html: {}", reason));
    }
    check_output(html);
  }
  if (!json.empty()) check_output(json);
  if (leave_stdout()) check_output(std::string(kStdout));
}

}  // namespace epistle::cli
