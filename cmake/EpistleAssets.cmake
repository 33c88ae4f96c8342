# The files that reports contain, as string literals in a generated source: written at configure time, again whenever one of
# them has changed.
find_file(EPISTLE_CHART_JS chart.min.js PATHS /usr/share/javascript/chart.js /usr/share/nodejs/chart.js/dist
  DOC "Chart.js 3.9, minified: the charts of HTML reports. Without it there are none")
if(NOT EPISTLE_CHART_JS)
  message(STATUS "Chart.js not found: no HTML reports; scripts/install-deps build installs it")
endif()

# epistle_embed(VARIABLE file): the content of the file as C++ source. Pieces, as compilers need not take long literals.
function(epistle_embed variable file)
  set(text "")
  if(file)
    set_property(DIRECTORY "${PROJECT_SOURCE_DIR}" APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${file}")
    file(READ "${file}" content)
    string(LENGTH "${content}" length)
    set(begin 0)
    while(begin LESS length)
      string(SUBSTRING "${content}" ${begin} 16000 piece)
      string(APPEND text "R\"asset(${piece})asset\"\n")
      math(EXPR begin "${begin} + 16000")
    endwhile()
  endif()
  if(text STREQUAL "")
    set(text "\"\"")
  endif()
  set(${variable} "${text}" PARENT_SCOPE)
endfunction()

# epistle_add_assets(TARGET)
function(epistle_add_assets target)
  set(folder "${PROJECT_SOURCE_DIR}/src/report/html")
  set(source "${PROJECT_BINARY_DIR}/generated/html_assets.cpp")
  epistle_embed(library "${EPISTLE_CHART_JS}")
  epistle_embed(script "${folder}/page.js")
  epistle_embed(style "${folder}/page.css")
  file(CONFIGURE OUTPUT "${source}" @ONLY CONTENT "#include \"report/html/assets.hpp\"

namespace epistle::html {

const std::string_view kChartLibrary = @library@;
const std::string_view kPageScript = @script@;
const std::string_view kPageStyle = @style@;

}  // namespace epistle::html
")
  target_sources(${target} PRIVATE "${source}")
  # The pieces are one literal again, longer than what Clang's -Wpedantic takes.
  set_source_files_properties("${source}" PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON SKIP_PRECOMPILE_HEADERS ON
    COMPILE_OPTIONS "$<$<CXX_COMPILER_ID:Clang>:-Wno-overlength-strings>")
endfunction()

# epistle_add_probe(TARGET FOLDER): the Python files of FOLDER, which the command writes out where it starts them.
function(epistle_add_probe target folder)
  file(GLOB scripts CONFIGURE_DEPENDS "${folder}/*.py")
  set(entries "")
  foreach(script IN LISTS scripts)
    get_filename_component(name "${script}" NAME)
    epistle_embed(text "${script}")
    string(APPEND entries "    ProbeScript{\"${name}\",\n${text}},\n")
  endforeach()
  set(source "${PROJECT_BINARY_DIR}/generated/probe_scripts.cpp")
  file(CONFIGURE OUTPUT "${source}" @ONLY CONTENT "#include \"probe_scripts.hpp\"

#include <array>

namespace epistle::cli {
namespace {

constexpr std::array kScripts = {
@entries@};

}  // namespace

std::span<const ProbeScript> probe_scripts() noexcept { return kScripts; }

}  // namespace epistle::cli
")
  target_sources(${target} PRIVATE "${source}")
  set_source_files_properties("${source}" PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON SKIP_PRECOMPILE_HEADERS ON)
endfunction()
