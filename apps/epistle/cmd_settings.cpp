// epistle settings: the environment variables, their values and where these come from.
#include <memory>
#include <string>

#include <CLI/CLI.hpp>

#include "commands.hpp"
#include "core/settings.hpp"
#include "json_text.hpp"
#include "output.hpp"
#include "report/table.hpp"

namespace epistle::cli {
namespace {

std::string render_table() {
  Table table({{"variable"}, {"value"}, {"from"}, {"default"}, {"accepted"}, {"meaning"}});
  for (const SettingInfo& info : settings().infos()) {
    table.add_row({std::string(info.name), info.value, std::string(to_string(info.origin)),
                   std::string(info.default_value), info.accepted, std::string(info.summary)});
  }
  return table.render();
}

std::string render_json() {
  Json list = Json::array();
  for (const SettingInfo& info : settings().infos()) {
    list.push_back({{"name", info.name},
                    {"value", info.value},
                    {"origin", to_string(info.origin)},
                    {"default", info.default_value},
                    {"accepted", info.accepted},
                    {"summary", info.summary}});
  }
  return json_text({{"settings", list}});
}

}  // namespace

void add_settings_command(CLI::App& app, int& /*exit_code*/) {
  CLI::App* const command = app.add_subcommand("settings", "List environment variables and their values");
  const auto as_json = std::make_shared<bool>(false);
  command->add_flag("--json", *as_json, "Print JSON instead of the table");
  command->callback([as_json] {
    if (*as_json) {
      write_output(std::string(kStdout), render_json());
    } else {
      print(render_table());
    }
  });
}

}  // namespace epistle::cli
