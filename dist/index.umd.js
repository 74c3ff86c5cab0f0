// Reaches the sidebar of an open sample, which FiftyOne's Python operators do not: set_active_fields sets the grid's.
// `activeFields` is part of the App's state, not of a documented interface. Where it is missing, the operator says so.
(() => {
  const { __foo__: operators, __fop__: plugins, __fos__: state, __fosp__: spaces, recoil, React } = window;
  if (!operators?.registerOperator) return;

  const supported = Boolean(state?.activeFields && spaces?.usePanelId && recoil?.useRecoilCallback);
  const fields = supported && state.activeFields({ modal: true });

  // Shows `fields` in the open sample, if any are given; returns those that it shows, null where that is out of reach.
  class SampleFields extends operators.Operator {
    get config() {
      return new operators.OperatorConfig({ name: "sample_fields", label: "Fields of the open sample", unlisted: true });
    }
    useHooks() {
      if (!supported) return () => null;
      return recoil.useRecoilCallback(({ set, snapshot }) => async (wanted) => {
        if (wanted) set(fields, wanted);
        return wanted ?? (await snapshot.getPromise(fields));
      });
    }
    async execute({ hooks, params }) {
      return { fields: await hooks(params.fields) };
    }
  }
  operators.registerOperator(SampleFields, "@pose-heatmaps/higherhrnet");
  if (!supported) return;

  // Draws nothing; tells the panel when somebody changes the sidebar of the open sample.
  function PoseHeatmapsSidebar({ schema }) {
    const shown = recoil.useRecoilValue(fields);
    const panel = spaces.usePanelId();
    const tell = operators.usePanelEvent();
    const known = React.useRef(null);
    React.useEffect(() => {
      const now = JSON.stringify(shown);
      if (known.current !== null && known.current !== now) {
        tell(panel, { operator: schema.view.on_sidebar, params: { fields: shown } });
      }
      known.current = now;
    }, [shown]);
    return null;
  }
  plugins.registerComponent({
    name: "PoseHeatmapsSidebar",
    label: "PoseHeatmapsSidebar",
    component: PoseHeatmapsSidebar,
    type: plugins.PluginComponentType.Component,
    activator: () => true,
  });
})();
