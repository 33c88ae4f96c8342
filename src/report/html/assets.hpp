// The files that every page contains. cmake/EpistleAssets.cmake writes their contents into a source file.
#pragma once

#include <string_view>

namespace epistle::html {

extern const std::string_view kChartLibrary;  ///< chart.min.js; empty where configuring did not find it
extern const std::string_view kPageScript;    ///< src/report/html/page.js
extern const std::string_view kPageStyle;     ///< src/report/html/page.css

}  // namespace epistle::html
