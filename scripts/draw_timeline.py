"""Draws the lines of JSON that `network_rank timeline` prints, one of each rank, as an SVG: for scripts/hybrid-timeline."""

import json
import sys

WIDTH, LEFT, LANE, GAP = 960, 150, 18, 14
COLOURS = {"pack": "#2b6cb0", "network": "#a0aec0", "forward": "#2f855a", "own": "#b7791f", "receive": "#6b46c1"}
LABELS = {
    "pack": "packs a chunk and puts it",
    "network": "a chunk is on the network",
    "forward": "passes a chunk on",
    "own": "passes own rows on",
    "receive": "completes rows",
}


def main() -> int:
    ranks = [json.loads(line) for line in sys.stdin if line.strip()]
    if not ranks or not all(rank.get("ok") and rank["events"] for rank in ranks):
        return 1
    by_place = {(rank["domain"], rank["index"]): rank for rank in ranks}
    end_us = max(event["end_us"] for rank in ranks for event in rank["events"])
    shapes = []
    top = 40
    for (domain, index), rank in sorted(by_place.items()):
        lanes = {"network": [], "work": []}
        for event in rank["events"]:
            if event["work"] == "arrived":
                # From the peer's put to the moment when it was seen here.
                peer = by_place[(event["domain"], index)]
                put = next(
                    sent for sent in peer["events"]
                    if (sent["work"], sent["domain"], sent["chunk"]) == ("pack", domain, event["chunk"])
                )
                lanes["network"].append(("network", put["end_us"], event["begin_us"], event["chunk"]))
            else:
                lanes["work"].append((event["work"], event["begin_us"], event["end_us"], event["chunk"]))
        for lane, spans in lanes.items():
            name = f"host {domain}, rank {index}: " + ("arriving" if lane == "network" else "working")
            shapes.append(f'<text x="{LEFT - 8}" y="{top + 13}" text-anchor="end">{name}</text>')
            for place, (work, begin, end, chunk) in enumerate(spans):
                left = LEFT + begin / end_us * (WIDTH - LEFT - 10)
                width = max((end - begin) / end_us * (WIDTH - LEFT - 10), 0.7)
                # Chunks that are on their way together share the lane.
                height = LANE / 4 if work == "network" else LANE
                y = top + (place % 4) * height if work == "network" else top
                shapes.append(
                    f'<rect x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{COLOURS[work]}">'
                    f"<title>{LABELS[work]}: {chunk}, {begin:.0f} to {end:.0f} us</title></rect>"
                )
            top += LANE + 4
        top += GAP
    for place, (work, colour) in enumerate(COLOURS.items()):
        x = 10 + place * 190
        shapes.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{colour}"/>')
        shapes.append(f'<text x="{x + 18}" y="19">{LABELS[work]}</text>')
    for tenth in range(0, 11, 2):
        x = LEFT + tenth / 10 * (WIDTH - LEFT - 10)
        shapes.append(f'<text x="{x:.0f}" y="{top + 8}" text-anchor="middle">{tenth * 10}%</text>')
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + 20}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>'
    )
    print("\n".join(shapes))
    print("</svg>")
    return 0


if __name__ == "__main__":
    sys.exit(main())
