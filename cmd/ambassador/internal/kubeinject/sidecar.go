package kubeinject

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// containerName is the name of the sidecar.
const containerName = "ambassador"

// volumeNames are the names of our volumes.
var volumeNames = []string{"ambassador-config", "ambassador-run"}

// Sidecar is what is added to a pod.
type Sidecar struct {
	// Image of the container.
	Image string
	// ConfigMap is the name of a ConfigMap with the key ambassador.yaml. Config is the
	// text of a configuration instead, which becomes an annotation of the pod. One of
	// the two is needed.
	ConfigMap, Config string
	// Secret is the name of a Secret whose keys are files beside ambassador.yaml.
	// Empty: none.
	Secret string
	// ProbePort is the port of metrics.listen. If zero, the probes execute
	// `ambassador wait`, and there is none for liveness.
	ProbePort int
}

var (
	imagePattern = regexp.MustCompile(`^[A-Za-z0-9][\w.-]*(:\d+)?(/[\w.-]+)*(:[\w][\w.-]{0,127})?(@[a-z0-9+.-]+:[0-9a-f]{32,})?$`)
	namePattern  = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
)

func (s *Sidecar) check() error {
	switch {
	case !imagePattern.MatchString(s.Image):
		return fmt.Errorf("--image: %q is no image; use REGISTRY/NAME:TAG", s.Image)
	case (s.ConfigMap == "") == (s.Config == ""):
		return errors.New("--config: the sidecar needs a ConfigMap or a configuration, not both")
	case s.ConfigMap != "" && !namePattern.MatchString(s.ConfigMap):
		return fmt.Errorf("--config: %q is no name of a ConfigMap; a file needs the ending .yaml, or a / in its path", s.ConfigMap)
	case s.Secret != "" && !namePattern.MatchString(s.Secret):
		return fmt.Errorf("--secret: %q is no name of a Secret", s.Secret)
	case s.ProbePort < 0 || s.ProbePort > 65535:
		return fmt.Errorf("--probe-port: %d is no port", s.ProbePort)
	}
	return nil
}

// annotations returns the lines of the annotations.
func (s *Sidecar) annotations() []string {
	out := []string{annotationInjected + `: "true"`}
	if s.Config == "" {
		return out
	}
	text := strings.TrimRight(strings.ReplaceAll(s.Config, "\r\n", "\n"), " \n")
	head := annotationConfig + ": |"
	if strings.HasPrefix(strings.TrimLeft(text, "\n"), " ") {
		head += "2" // else the indentation of the first line would be that of the text
	}
	return append(out, slices.Concat([]string{head}, indented(2, strings.Split(text, "\n")))...)
}

// container returns the lines of the container.
func (s *Sidecar) container() []string {
	ports, probes := "", execProbes
	if s.ProbePort > 0 {
		ports = fmt.Sprintf("  ports:\n  - name: ambassador\n    containerPort: %d\n", s.ProbePort)
		probes = httpProbes
	}
	return linesOf("- name: " + containerName + "\n  image: " + scalar(s.Image) + "\n" + containerStart + ports + probes + containerEnd)
}

// volumes returns the lines of the volumes. The files belong to root and are of mode 0644,
// the default: fsGroup would change the volumes of other containers, too. No other
// container mounts them.
func (s *Sidecar) volumes() []string {
	text := "- name: ambassador-run\n  emptyDir: {}\n- name: ambassador-config\n  projected:\n    sources:\n"
	if s.ConfigMap != "" {
		text += "    - configMap:\n        name: " + scalar(s.ConfigMap) + "\n"
	} else {
		text += "    - downwardAPI:\n        items:\n        - path: ambassador.yaml\n          fieldRef:\n            fieldPath: metadata.annotations['" + annotationConfig + "']\n"
	}
	if s.Secret != "" {
		text += "    - secret:\n        name: " + scalar(s.Secret) + "\n"
	}
	return linesOf(text)
}

// words are plain scalars that some parser of YAML does not read as a string.
var words = []string{"null", "true", "false", "yes", "no", "on", "off", "y", "n"}

// scalar returns s as a YAML string. S begins with a letter or a digit; one that begins
// with a digit may be a number or a time.
func scalar(s string) string {
	if s[0] >= '0' && s[0] <= '9' || slices.Contains(words, strings.ToLower(s)) {
		return `"` + s + `"`
	}
	return s
}

func linesOf(text string) []string { return strings.Split(strings.TrimSuffix(text, "\n"), "\n") }

// The parts of the container.
const (
	containerStart = `  args: ["run", "--config", "/etc/ambassador/ambassador.yaml", "--watch"]
  restartPolicy: Always
`
	httpProbes = `  startupProbe:
    httpGet: {path: /readyz, port: ambassador}
    periodSeconds: 1
    failureThreshold: 300
  readinessProbe:
    httpGet: {path: /readyz, port: ambassador}
    periodSeconds: 5
  livenessProbe:
    httpGet: {path: /livez, port: ambassador}
    periodSeconds: 10
    timeoutSeconds: 5
`
	execProbes = `  startupProbe:
    exec: {command: ["/ambassador", "wait", "--timeout", "1s"]}
    periodSeconds: 2
    timeoutSeconds: 5
    failureThreshold: 150
  readinessProbe:
    exec: {command: ["/ambassador", "wait", "--timeout", "1s"]}
    periodSeconds: 10
    timeoutSeconds: 5
`
	containerEnd = `  resources:
    requests: {cpu: 10m, memory: 64Mi}
    limits: {memory: 256Mi}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: ["ALL"]}
    seccompProfile: {type: RuntimeDefault}
  volumeMounts:
  - {name: ambassador-config, mountPath: /etc/ambassador, readOnly: true}
  - {name: ambassador-run, mountPath: /run/ambassador}
`
)
