package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dashboard has the keys that the printed dashboard may have, of those in Grafana's
// schema of a dashboard (kinds/dashboard/dashboard_kind.cue).
type dashboard struct {
	Title, UID, Description, Refresh, Timezone string
	Tags                                       []string
	SchemaVersion, Version                     int
	Editable                                   bool
	Time                                       struct{ From, To string }
	Annotations                                struct{ List []any }
	Templating                                 struct{ List []dashboardVariable }
	Panels                                     []dashboardPanel
}

type dashboardVariable struct {
	Name, Type, Label, AllValue string
	Query                       any
	Datasource                  *dashboardSource
	Refresh                     int
	Multi, IncludeAll           bool
	Current                     map[string]any
}

type dashboardSource struct{ Type, UID string }

type dashboardPanel struct {
	ID                       int
	Type, Title, Description string
	Collapsed                *bool
	Panels                   []any
	Datasource               *dashboardSource
	GridPos                  struct{ H, W, X, Y int }
	FieldConfig              *struct {
		Defaults struct {
			Unit string
			Min  *float64
		}
		Overrides []any
	}
	Targets []dashboardTarget
}

type dashboardTarget struct {
	RefID, Expr, LegendFormat, Format string
	Instant, Exemplar                 bool
	Datasource                        *dashboardSource
}

// grafanaUnits are the units of Grafana that the dashboard may use.
var grafanaUnits = []string{"none", "short", "percent", "percentunit", "s", "ms", "bytes", "Bps", "cps"}

func readDashboard(t *testing.T) *dashboard {
	t.Helper()
	text, err := os.ReadFile("assets/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	d := &dashboard{}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(d); err != nil {
		t.Fatalf("%v: is that a key of Grafana's schema?", err)
	}
	return d
}

// TestDashboardIsGrafanas asserts the rules of Grafana's schema that a wrong dashboard
// breaks silently: Grafana imports it, and a panel is empty, hidden or somewhere else.
func TestDashboardIsGrafanas(t *testing.T) {
	for _, problem := range readDashboard(t).problems() {
		t.Error(problem)
	}
}

// TestDashboardProblems asserts that the rules find what is wrong.
func TestDashboardProblems(t *testing.T) {
	for want, spoil := range map[string]func(*dashboard){
		"schemaVersion":         func(d *dashboard) { d.SchemaVersion = 16 },
		"uid":                   func(d *dashboard) { d.UID = "a/b" },
		"id 2 twice":            func(d *dashboard) { d.Panels[2].ID = 2 },
		"overlaps":              func(d *dashboard) { d.Panels[2].GridPos.X-- },
		"gridPos":               func(d *dashboard) { d.Panels[6].GridPos.W++ },
		"unit":                  func(d *dashboard) { d.Panels[1].FieldConfig.Defaults.Unit = "seconds" },
		"datasource":            func(d *dashboard) { d.Panels[1].Targets[0].Datasource.UID = "P1809F7CD0C75ACF3" },
		"refId":                 func(d *dashboard) { d.Panels[12].Targets[1].RefID = "A" },
		"variable $job":         func(d *dashboard) { d.Panels[1].Targets[0].Expr = `up{job=~"$job"}` },
		"variable datasource":   func(d *dashboard) { d.Templating.List = d.Templating.List[1:] },
		"legend {{nonsense}}":   func(d *dashboard) { d.Panels[8].Targets[0].LegendFormat = "{{nonsense}}" },
		"a row without a place": func(d *dashboard) { d.Panels[0].Collapsed = nil },
	} {
		d := readDashboard(t)
		spoil(d)
		if got := strings.Join(d.problems(), "\n"); !strings.Contains(got, want) {
			t.Errorf("%s: the problems are %q", want, got)
		}
	}
}

func (d *dashboard) problems() (out []string) {
	add := func(wrong bool, format string, args ...any) {
		if wrong {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	add(d.SchemaVersion < 36 || d.SchemaVersion > 42, "schemaVersion %d: Grafana 9 to 12 know 36 to 42", d.SchemaVersion)
	add(!regexp.MustCompile(`^[a-zA-Z0-9_-]{1,40}$`).MatchString(d.UID), "uid %q", d.UID)
	add(d.Title == "" || d.Time.From == "" || d.Time.To == "" || !slices.Contains([]string{"", "utc", "browser"}, d.Timezone), "title %q, time %v, timezone %q", d.Title, d.Time, d.Timezone)
	sources := slices.ContainsFunc(d.Templating.List, func(v dashboardVariable) bool {
		return v.Name == "datasource" && v.Type == "datasource" && v.Query == "prometheus"
	})
	add(!sources, "there is no variable datasource of type datasource for prometheus")
	for _, v := range d.Templating.List {
		add(!slices.Contains([]string{"datasource", "query"}, v.Type) || v.Refresh < 0 || v.Refresh > 2, "variable %s: type %s, refresh %d", v.Name, v.Type, v.Refresh)
		add(v.Type == "query" && (v.Datasource == nil || v.Datasource.UID != "${datasource}"), "variable %s: its datasource is not the variable", v.Name)
	}
	ids := map[int]bool{}
	for i, p := range d.Panels {
		add(ids[p.ID] || p.ID <= 0, "panel %q: id %d twice, or none", p.Title, p.ID)
		ids[p.ID] = true
		for _, other := range d.Panels[:i] {
			add(p.overlaps(&other), "panel %q overlaps %q", p.Title, other.Title)
		}
		out = append(out, p.problems(d)...)
	}
	return out
}

func (p *dashboardPanel) overlaps(o *dashboardPanel) bool {
	a, b := p.GridPos, o.GridPos
	return a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H
}

func (p *dashboardPanel) problems(d *dashboard) (out []string) {
	add := func(wrong bool, format string, args ...any) {
		if wrong {
			out = append(out, fmt.Sprintf("panel %q: ", p.Title)+fmt.Sprintf(format, args...))
		}
	}
	g := p.GridPos
	add(g.H < 1 || g.W < 1 || g.X < 0 || g.Y < 0 || g.X+g.W > 24, "gridPos %+v is not within 24 columns", g)
	add(p.Title == "", "no title")
	if p.Type == "row" {
		add(p.Collapsed == nil || *p.Collapsed || len(p.Panels) > 0 || p.Targets != nil || g.H != 1 || g.W != 24, "a row without a place, or closed")
		return out
	}
	add(!slices.Contains([]string{"stat", "timeseries", "table"}, p.Type), "type %q", p.Type)
	add(p.FieldConfig == nil || p.FieldConfig.Overrides == nil || !slices.Contains(grafanaUnits, p.FieldConfig.Defaults.Unit), "unit, or overrides: %+v", p.FieldConfig)
	add(p.Datasource == nil || *p.Datasource != dashboardSource{"prometheus", "${datasource}"}, "datasource %+v", p.Datasource)
	add(len(p.Targets) == 0, "no query")
	refs := map[string]bool{}
	for _, q := range p.Targets {
		add(q.RefID == "" || refs[q.RefID], "refId %q twice, or none", q.RefID)
		refs[q.RefID] = true
		add(q.Datasource == nil || *q.Datasource != dashboardSource{"prometheus", "${datasource}"}, "query %s: datasource %+v", q.RefID, q.Datasource)
		for _, m := range regexp.MustCompile(`\$\{?([a-zA-Z_]+)`).FindAllStringSubmatch(q.Expr+q.LegendFormat, -1) {
			known := m[1] == "__rate_interval" || slices.ContainsFunc(d.Templating.List, func(v dashboardVariable) bool { return v.Name == m[1] })
			add(!known, "query %s: there is no variable $%s", q.RefID, m[1])
		}
		for _, m := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(q.LegendFormat, -1) {
			add(!q.hasLabel(m[1]), "query %s: no series has the label of legend {{%s}}", q.RefID, m[1])
		}
	}
	return out
}

// hasLabel reports whether the series of the query may have the label: they are grouped by
// it, or not grouped.
func (q *dashboardTarget) hasLabel(name string) bool {
	groups := regexp.MustCompile(`by \(([^)]*)\)`).FindStringSubmatch(q.Expr)
	return groups == nil || slices.Contains(strings.Split(groups[1], ", "), name)
}
