"""What all dashboards have in common: variables, and panels with a unit, a description, thresholds and a word for no data.

Classic dashboards, as Grafana's sidecar takes no others; no data source is wired in.
"""

import dataclasses
import json
from collections.abc import Sequence

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
# Of 24 columns.
FULL, HALF, THIRD, QUARTER, SIXTH = 24, 12, 8, 6, 4
LOW, HIGH = 4, 8

JOB_LINK = (
    "/d/finetune-job?var-datasource=${datasource}&${cluster:queryparam}"
    "&var-namespace=${__data.fields.Namespace}&var-job=${__data.fields.Job}&${__url_time_range}"
)

Panel = timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel
# (value from which on, colour); the first has no value.
Steps = Sequence[tuple[float | None, str]]
CALM: Steps = ((None, "green"),)
# Where more is worse.
BAD_FROM_ONE: Steps = ((None, "green"), (1, "red"))
# Of a share of which more is better.
BETTER_IF_MORE: Steps = ((None, "red"), (0.5, "yellow"), (0.8, "green"))


@dataclasses.dataclass(frozen=True)
class Query:
    """expr: PromQL with Grafana's variables. legend: what a series is called; in a table the column's title."""

    expr: str
    legend: str = ""


@dataclasses.dataclass(frozen=True)
class Shown:
    """What every panel says of itself. empty: what it means that there is no data."""

    title: str
    description: str
    unit: str
    empty: str
    steps: Steps = CALM
    width: int = HALF
    height: int = HIGH


def lines(
    shown: Shown,
    *queries: Query,
    stacked: bool = False,
    least: float | None = 0,
    most: float | None = None,
    logarithmic: bool = False,
) -> timeseries.Panel:
    """Lines over time. Thresholds are drawn where there are some."""
    panel = _dressed(timeseries.Panel(), shown, queries, instant=False)
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.TABLE).placement(
        common_models.LegendPlacement.BOTTOM
    ).calcs(["lastNotNull", "max"]).show_legend(True)  # fmt: skip
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI).sort(common_models.SortOrder.DESCENDING)
    panel.legend(legend).tooltip(tooltip).fill_opacity(20 if stacked else 5).show_points(common_models.VisibilityMode.AUTO)
    if least is not None and not logarithmic:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if logarithmic:
        panel.scale_distribution(common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10))
    if len(shown.steps) > 1:
        mode = common_models.GraphThresholdsStyleMode.DASHED
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(mode))
    return panel


def number(shown: Shown, query: Query, name_instead: bool = False) -> stat.Panel:
    """One figure, coloured by its thresholds. name_instead: show the series' name, and not its value."""
    panel = _dressed(stat.Panel(), shown, [query], instant=True)
    reduce = common.ReduceDataOptions().calcs(["lastNotNull"])
    panel.reduce_options(reduce).graph_mode(common_models.BigValueGraphMode.NONE)
    panel.color_mode(common_models.BigValueColorMode.VALUE)
    return panel.text_mode(common_models.BigValueTextMode.NAME if name_instead else common_models.BigValueTextMode.AUTO)


def bars(shown: Shown, query: Query) -> bargauge.Panel:
    """One bar for each series, of what is now, or was over the whole time that is looked at."""
    panel = _dressed(bargauge.Panel(), shown, [query], instant=True)
    panel.orientation(common_models.VizOrientation.HORIZONTAL).display_mode(common_models.BarGaugeDisplayMode.BASIC)
    return panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).min(0)


def rows(shown: Shown, *queries: Query, units: dict[str, str], sort_by: str) -> table.Panel:
    """One row for each job, a column for each query; a click leads to the job. units: of the columns by title."""
    panel = _dressed(table.Panel(), shown, queries, instant=True)
    letters = [chr(ord("A") + index) for index in range(len(queries))]
    titles = {f"Value #{letter}": query.legend for letter, query in zip(letters, queries, strict=True)}
    renamed = {**titles, "namespace": "Namespace", "finetunejob": "Job"}
    hidden = {"Time": True, "cluster": True}
    order = {name: index for index, name in enumerate(["namespace", "finetunejob", *titles])}
    panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        models.DataTransformerConfig(
            id_val="organize", options={"excludeByName": hidden, "indexByName": order, "renameByName": renamed}
        )
    )
    for title, unit in units.items():
        panel.override_by_name(title, [models.DynamicConfigValue(id_val="unit", value=unit)])
    panel.override_by_name("Namespace", [models.DynamicConfigValue(id_val="custom.width", value=140)])
    link = {"title": "Dashboard of this job", "url": JOB_LINK, "targetBlank": False}
    panel.override_by_name("Job", [models.DynamicConfigValue(id_val="links", value=[link])])
    return panel.sort_by([common.TableSortByFieldState().display_name(sort_by).desc(True)])


def _dressed(panel: Panel, shown: Shown, queries: Sequence[Query], instant: bool) -> Panel:
    panel.title(shown.title).description(f"{shown.description} No data: {shown.empty}").unit(shown.unit).no_value("–")
    panel.datasource(SOURCE).span(shown.width).height(shown.height)
    thresholds = [models.Threshold(value=value, color=color) for value, color in shown.steps]
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds))
    for index, query in enumerate(queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))
        target.instant() if instant else target.range()
        if isinstance(panel, table.Panel):
            target.format(prometheus_models.PromQueryFormat.TABLE)
        panel.with_target(target)
    return panel


def begin(name: str, title: str, description: str, of_jobs: bool) -> dashboard.Dashboard:
    """An empty dashboard with the variables that all have. of_jobs: its namespaces are those of jobs, not of the operator."""
    made = dashboard.Dashboard(title).uid(f"finetune-{name}").tags(["finetune"]).refresh("30s").time("now-3h", "now")
    made.description(f"Generated by `make generate` from charts/dashboards/{name}.py; do not edit. {description}")
    made.timezone("browser").editable().tooltip(models.DashboardCursorSync.CROSSHAIR)
    others = dashboard.DashboardLink("FineTune dashboards").type(models.DashboardLinkType.DASHBOARDS).tags(["finetune"])
    made.link(others.as_dropdown(True).include_vars(True).keep_time(True))
    made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    metric = "finetune_job_phase" if of_jobs else "finetune_operator_leader"
    # Where many clusters report to one Prometheus there is such a label; elsewhere none, which .* matches, too.
    made.with_variable(variable("cluster", "Cluster", f"label_values({metric}, cluster)"))
    namespaces = f'label_values({metric}{{cluster=~"$cluster"}}, namespace)'
    return made.with_variable(variable("namespace", "Namespace", namespaces))


def variable(name: str, label: str, query: str, several: bool = True) -> dashboard.QueryVariable:
    """Values of a label. several: all of them at first; else one, at first the first."""
    chosen = dashboard.QueryVariable(name).label(label).query(query).definition(query).datasource(SOURCE)
    chosen.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    if several:
        everything = models.VariableOption(text="All", value="$__all", selected=True)
        chosen.include_all(True).multi(True).all_value(".*").current(everything)
    return chosen


def with_rows(made: dashboard.Dashboard, content: dict[str, Sequence[Panel]]) -> dashboard.Dashboard:
    """Append rows of panels, by title."""
    for title, panels in content.items():
        made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(panel)
    return made


def render(made: dashboard.Dashboard) -> str:
    """As JSON; the description first, as it says where this comes from."""
    content = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    ordered = {"description": content.pop("description"), **content}
    return json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"
