"""Functions that all dashboards use: variables, and panels with a unit, a description, thresholds and a text for missing data.

The dashboards have Grafana's classic format, because the sidecar supports no other. The user selects the data source.
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
# Widths, of 24 columns, and heights.
FULL, HALF, THIRD, QUARTER, SIXTH = 24, 12, 8, 6, 4
LOW, HIGH = 4, 8

JOB_LINK = (
    "/d/finetune-job?var-datasource=${datasource}&${cluster:queryparam}"
    "&var-namespace=${__data.fields.Namespace}&var-job=${__data.fields.Job}&${__url_time_range}"
)

Panel = timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel
# Pairs of (lower bound, colour). The first has no bound.
Thresholds = Sequence[tuple[float | None, str]]
NO_THRESHOLDS: Thresholds = ((None, "green"),)
RED_FROM_ONE: Thresholds = ((None, "green"), (1, "red"))
# For a share from 0 to 1.
HIGHER_IS_BETTER: Thresholds = ((None, "red"), (0.5, "yellow"), (0.8, "green"))


@dataclasses.dataclass(frozen=True)
class Query:
    """A query. expr: PromQL with Grafana's variables. legend: the name of a series, or the title of a table's column."""

    expr: str
    legend: str = ""


@dataclasses.dataclass(frozen=True)
class PanelOptions:
    """Options that every panel has. no_data: why the panel may have no data."""

    title: str
    description: str
    unit: str
    no_data: str
    thresholds: Thresholds = NO_THRESHOLDS
    width: int = HALF
    height: int = HIGH


def time_series(
    options: PanelOptions,
    *queries: Query,
    stacked: bool = False,
    minimum: float | None = 0,
    maximum: float | None = None,
    logarithmic: bool = False,
) -> timeseries.Panel:
    """Return a panel of time series. It shows the thresholds if there is more than one."""
    panel = _configure(timeseries.Panel(), options, queries, instant=False)
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.TABLE).placement(
        common_models.LegendPlacement.BOTTOM
    ).calcs(["lastNotNull", "max"]).show_legend(True)  # fmt: skip
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI).sort(common_models.SortOrder.DESCENDING)
    panel.legend(legend).tooltip(tooltip).fill_opacity(20 if stacked else 5).show_points(common_models.VisibilityMode.AUTO)
    if minimum is not None and not logarithmic:
        panel.min(minimum)
    if maximum is not None:
        panel.max(maximum)
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if logarithmic:
        panel.scale_distribution(common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10))
    if len(options.thresholds) > 1:
        mode = common_models.GraphThresholdsStyleMode.DASHED
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(mode))
    return panel


def stat_panel(options: PanelOptions, query: Query, show_name: bool = False) -> stat.Panel:
    """Return a panel with one value, coloured by its thresholds. show_name: show the name of the series instead of its value."""
    panel = _configure(stat.Panel(), options, [query], instant=True)
    reduce = common.ReduceDataOptions().calcs(["lastNotNull"])
    panel.reduce_options(reduce).graph_mode(common_models.BigValueGraphMode.NONE)
    panel.color_mode(common_models.BigValueColorMode.VALUE)
    return panel.text_mode(common_models.BigValueTextMode.NAME if show_name else common_models.BigValueTextMode.AUTO)


def bar_gauge(options: PanelOptions, query: Query) -> bargauge.Panel:
    """Return a panel with one bar for each series of an instant query."""
    panel = _configure(bargauge.Panel(), options, [query], instant=True)
    panel.orientation(common_models.VizOrientation.HORIZONTAL).display_mode(common_models.BarGaugeDisplayMode.BASIC)
    return panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).min(0)


def table_panel(options: PanelOptions, *queries: Query, units: dict[str, str], sort_by: str) -> table.Panel:
    """Return a table with a row for each job and a column for each query. A row links to the dashboard of its job.

    units: title of a column → its unit.
    """
    panel = _configure(table.Panel(), options, queries, instant=True)
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


def _configure(panel: Panel, options: PanelOptions, queries: Sequence[Query], instant: bool) -> Panel:
    panel.title(options.title).description(f"{options.description} No data: {options.no_data}").unit(options.unit).no_value("–")
    panel.datasource(SOURCE).span(options.width).height(options.height)
    thresholds = [models.Threshold(value=value, color=color) for value, color in options.thresholds]
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds))
    for index, query in enumerate(queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))
        target.instant() if instant else target.range()
        if isinstance(panel, table.Panel):
            target.format(prometheus_models.PromQueryFormat.TABLE)
        panel.with_target(target)
    return panel


def new_dashboard(name: str, title: str, description: str, job_namespaces: bool) -> dashboard.Dashboard:
    """Return a dashboard without panels, with the variables that all dashboards have.

    job_namespaces: the variable namespace lists the namespaces of jobs, not of the operator.
    """
    made = dashboard.Dashboard(title).uid(f"finetune-{name}").tags(["finetune"]).refresh("30s").time("now-3h", "now")
    made.description(f"Generated by `make generate` from charts/dashboards/{name}.py; do not edit. {description}")
    made.timezone("browser").editable().tooltip(models.DashboardCursorSync.CROSSHAIR)
    others = dashboard.DashboardLink("FineTune dashboards").type(models.DashboardLinkType.DASHBOARDS).tags(["finetune"])
    made.link(others.as_dropdown(True).include_vars(True).keep_time(True))
    made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    metric = "finetune_job_phase" if job_namespaces else "finetune_operator_leader"
    # The label cluster exists only if several clusters report to one Prometheus. The default .* also matches series without it.
    made.with_variable(variable("cluster", "Cluster", f"label_values({metric}, cluster)"))
    namespaces = f'label_values({metric}{{cluster=~"$cluster"}}, namespace)'
    return made.with_variable(variable("namespace", "Namespace", namespaces))


def variable(name: str, label: str, query: str, multiple: bool = True) -> dashboard.QueryVariable:
    """Return a variable with the values of a label. multiple: the user may select several, and all are the default."""
    chosen = dashboard.QueryVariable(name).label(label).query(query).definition(query).datasource(SOURCE)
    chosen.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    if multiple:
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
    """Return the JSON. The description is the first key, because it says how the file is generated."""
    content = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    ordered = {"description": content.pop("description"), **content}
    return json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"
